"""Model port over HTTP: Stack B, the gateway.

Each call carries a short-lived token minted for the caller, never the caller's own, and the caller's correlation id and
trace, so that one request is one story across both stacks. Errors of the gateway become the errors they were there.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Meta, Struct

from ports.adapter import AdapterSpec, Given
from ports.auth import TokenIssuer
from ports.clock import Clock
from ports.context import AuthContext, Trace
from ports.errors import CODES, AgentOSError, Unavailable, from_code
from ports.http.sse_decoder import SseDecoder
from ports.http.trace import child
from ports.messages import Json, Usage
from ports.model import (
    ChatDelta,
    ChatReply,
    ChatRequest,
    Embeddings,
    FinishReason,
    Message,
    ModelCapabilities,
    ModelInfo,
    ModelPort,
    PolicyOutcome,
    Route,
    ToolRequest,
)

AUDIENCE: Final = "stack-b"
SCOPES: Final = frozenset({"models:invoke"})
LIFETIME: Final = timedelta(minutes=5)
REUSE: Final = timedelta(minutes=1)
"""How long a minted token is used again: signing is not free, and what it grants was decided when it was signed."""
MAX_TOKENS_KEPT: Final = 1_000
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_POOL: Final = httpx.Limits(max_connections=1_024, max_keepalive_connections=128, keepalive_expiry=30)
_FINISHES: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}

_AWAY: Final = frozenset({httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT})

AnswerT = TypeVar("AnswerT", bound=Struct)


class StackBModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base_url: str
    timeout_s: Annotated[float, Meta(gt=0)] = 600.0
    """The longest wait for the next bytes. The gateway gives up before, and says so."""


class _Function(Struct, frozen=True):
    name: str
    arguments: str


class _Call(Struct, frozen=True):
    id: str
    function: _Function

    def request(self) -> ToolRequest:
        return ToolRequest(id=self.id, name=self.function.name, arguments=self.function.arguments)


class _Reply(Struct, frozen=True):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, frozen=True):
    message: _Reply | None = None
    delta: _Reply | None = None
    finish_reason: str | None = None


class _Answer(Struct, frozen=True):
    """A completion, or a chunk of one: the receipt is on the last chunk with a choice."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    policy_outcome: PolicyOutcome | None = None
    route: Route | None = None


class _Vector(Struct, frozen=True):
    index: int
    embedding: tuple[float, ...]


class _Vectors(Struct, frozen=True):
    data: list[_Vector]
    usage: Usage
    route: Route


class _Checked(Struct, frozen=True):
    policy_outcome: PolicyOutcome


class _Model(Struct, frozen=True):
    id: str
    owned_by: str
    chat: bool
    embed: bool


class _Models(Struct, frozen=True):
    data: list[_Model]


class _Refusal(Struct, frozen=True):
    code: str
    message: str
    retryable: bool
    details: dict[str, Json] = {}


class _Refused(Struct, frozen=True):
    error: _Refusal


class StackBModel:
    """Satisfies `ModelPort`."""

    capabilities = ModelCapabilities(tools=True, journaled=True)

    def __init__(self, client: httpx.AsyncClient, issuer: TokenIssuer, clock: Clock) -> None:
        self._client = client
        self._issuer = issuer
        self._clock = clock
        self._tokens: OrderedDict[AuthContext, tuple[str, datetime]] = OrderedDict()

    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        raw = await self._post(auth, "/v1/chat/completions", _chat_body(request), _headers(request))
        answer = _decoded(raw, _Answer)
        if not answer.choices or answer.choices[0].message is None:
            raise _not_understood("the answer has no message")
        choice, message = answer.choices[0], answer.choices[0].message
        return _reply(answer, message.content, _requests(message), choice.finish_reason)

    async def stream(self, auth: AuthContext, request: ChatRequest) -> AsyncGenerator[ChatDelta, None]:
        body = {**_chat_body(request), "stream": True}
        texts: list[str] = []
        calls: list[ToolRequest] = []
        async for answer in self._chunks(auth, body, _headers(request)):
            for choice in answer.choices:
                if choice.delta is not None and choice.delta.content:
                    texts.append(choice.delta.content)
                    yield ChatDelta(text=choice.delta.content)
                wished = _requests(choice.delta) if choice.delta is not None else ()
                if wished:
                    calls += wished
                    yield ChatDelta(tool_calls=wished)
                if choice.finish_reason is not None:
                    reply = _reply(answer, "".join(texts) or None, tuple(calls), choice.finish_reason)
        # `_chunks` ends only after a finish chunk.
        yield ChatDelta(reply=reply)

    async def abort(self, auth: AuthContext, step_key: str) -> None:
        await self._post(auth, "/v1/steps:cancel", {"step_key": step_key})

    async def embed(self, auth: AuthContext, model: str, inputs: tuple[str, ...]) -> Embeddings:
        body = {"model": model, "input": inputs, "encoding_format": "float"}
        answer = _decoded(await self._post(auth, "/v1/embeddings", body), _Vectors)
        vectors = tuple(item.embedding for item in sorted(answer.data, key=lambda item: item.index))
        return Embeddings(vectors=vectors, usage=answer.usage, route=answer.route)

    async def policy_check(self, auth: AuthContext, request: ChatRequest) -> PolicyOutcome:
        return _decoded(await self._post(auth, "/v1/policy/check", _chat_body(request)), _Checked).policy_outcome

    async def list_models(self, auth: AuthContext) -> tuple[ModelInfo, ...]:
        async with self._answered(self._request("GET", "/v1/models", auth)) as response:
            listed = _decoded(await _whole(response), _Models)
        return tuple(
            ModelInfo(id=model.id, backend=model.owned_by, chat=model.chat, embed=model.embed) for model in listed.data
        )

    async def _post(
        self, auth: AuthContext, path: str, body: Json, headers: Mapping[str, str] = MappingProxyType({})
    ) -> bytes:
        async with self._answered(self._request("POST", path, auth, body, headers)) as response:
            return await _whole(response)

    async def _chunks(self, auth: AuthContext, body: Json, headers: Mapping[str, str]) -> AsyncIterator[_Answer]:
        """The chunks up to `[DONE]`, of which one had a finish reason."""
        decoder = SseDecoder()
        finished = False
        async with self._answered(self._request("POST", "/v1/chat/completions", auth, body, headers)) as response:
            async for piece in response.aiter_bytes():
                for event in decoder.feed(piece):
                    if event == b"[DONE]" and finished:
                        return
                    if event.startswith(b'{"error"'):
                        raise _refusal(event, None)
                    answer = _decoded(event, _Answer)
                    finished = finished or any(choice.finish_reason for choice in answer.choices)
                    yield answer
        raise Unavailable("Stack B broke off in the middle of its answer", code="upstream_error")

    def _request(
        self,
        method: str,
        path: str,
        auth: AuthContext,
        body: Json = None,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> httpx.Request:
        headers = {**more, "authorization": f"Bearer {self._token(auth)}", "traceparent": child(auth.trace.traceparent)}
        if auth.trace.correlation_id:
            headers["x-correlation-id"] = auth.trace.correlation_id
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = msgspec.json.encode(body)
        return self._client.build_request(method, path, headers=headers, content=content)

    def _token(self, auth: AuthContext) -> str:
        # Everything of an identity but its request goes into the token, and so into the key it is kept under.
        who = auth.traced(Trace())
        now = self._clock.now()
        kept = self._tokens.get(who)
        if kept is None or now - kept[1] >= REUSE:
            kept = (self._issuer.mint(auth, audience=AUDIENCE, scopes=SCOPES, lifetime=LIFETIME), now)
            self._tokens[who] = kept
            self._tokens.move_to_end(who)
            if len(self._tokens) > MAX_TOKENS_KEPT:
                self._tokens.popitem(last=False)
        return kept[0]

    @asynccontextmanager
    async def _answered(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        """The gateway's 200, or the error it answered with."""
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(await _whole(response), response)
                yield response
            finally:
                await response.aclose()
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unavailable(
                "Stack B takes no connection; `agentos status` shows whether it runs", code="unavailable"
            ) from error
        except httpx.TimeoutException as error:
            raise Unavailable("Stack B did not answer in time", code="upstream_timeout") from error
        except httpx.HTTPError as error:
            raise Unavailable(
                "Stack B can't be reached; `agentos status` shows whether it runs", code="unavailable"
            ) from error


def _headers(request: ChatRequest) -> dict[str, str]:
    """What is said beside the body: it reaches no backend."""
    said = {"x-agent-id": quote(request.agent, safe=""), "x-session-id": quote(request.session, safe="")}
    headers = {name: value for name, value in said.items() if value}
    return headers if request.step_key is None else {**headers, "x-step-key": request.step_key}


def _chat_body(request: ChatRequest) -> dict[str, Json]:
    body: dict[str, Json] = {"model": request.model, "messages": [_message(message) for message in request.messages]}
    if request.tools:
        body["tools"] = [{"type": "function", "function": msgspec.to_builtins(tool)} for tool in request.tools]
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    return body


def _message(message: Message) -> dict[str, Json]:
    wire: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _requests(message: _Reply) -> tuple[ToolRequest, ...]:
    return tuple(call.request() for call in message.tool_calls or ())


def _reply(answer: _Answer, text: str | None, calls: tuple[ToolRequest, ...], finish_reason: str | None) -> ChatReply:
    if answer.usage is None or answer.policy_outcome is None or answer.route is None:
        raise _not_understood("the answer has no receipt")
    return ChatReply(
        message=Message(role="assistant", content=text, tool_calls=calls),
        finish_reason=_FINISHES.get(finish_reason or "stop", "stop"),
        usage=answer.usage,
        policy_outcome=answer.policy_outcome,
        route=answer.route,
    )


async def _whole(response: httpx.Response) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            raise _not_understood("the answer is too large")
        pieces.append(piece)
    return b"".join(pieces)


def _decoded(raw: bytes, kind: type[AnswerT]) -> AnswerT:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec names paths and types, never values.
        raise _not_understood(str(error)) from None


def _refusal(raw: bytes, response: httpx.Response | None) -> AgentOSError:
    """The error that the envelope in `raw` carries; for anything else, that the gateway is not what it should be."""
    try:
        told = msgspec.json.decode(raw, type=_Refused).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = response.status_code if response is not None else "an error"
        # What stands before Stack B says so where Stack B is away.
        code = "unavailable" if status in _AWAY else "upstream_error"
        return Unavailable(f"Stack B answered {status} without saying why", code=code)
    after = response.headers.get("retry-after", "") if response is not None else ""
    more = {"retryable": told.retryable} if told.code in CODES else {}
    return from_code(
        told.code,
        told.message,
        details=told.details,
        retry_after=timedelta(seconds=int(after)) if after.isascii() and after.isdigit() else None,
        **more,
    )


def _not_understood(what: str) -> Unavailable:
    return Unavailable(f"Stack B can't be understood: {what}", code="upstream_error")


@asynccontextmanager
async def open_stack_b_model(config: StackBModelConfig, given: Given) -> AsyncIterator[ModelPort]:
    client = httpx.AsyncClient(
        base_url=config.base_url,
        timeout=httpx.Timeout(config.timeout_s, connect=5.0, pool=5.0),
        limits=_POOL,
        headers={"user-agent": "agentos", "accept-encoding": "identity"},
        trust_env=False,
        follow_redirects=False,
    )
    async with client:
        yield StackBModel(client, given.ports["issuer"], given.clock)


SPEC: Final[AdapterSpec[StackBModelConfig, ModelPort]] = AdapterSpec(
    config=StackBModelConfig,
    capabilities=lambda _: StackBModel.capabilities,
    open=open_stack_b_model,
    needs=("issuer",),
)
