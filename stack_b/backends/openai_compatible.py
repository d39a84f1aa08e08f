"""A backend at any URL that speaks OpenAI: OpenAI itself, ollama, vLLM, TGI, LiteLLM and the rest.

One pooled client per backend. Nothing of the client's request but its body travels upstream, and nothing but the body
travels back.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct

from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.http.sse_decoder import SseDecoder
from ports.messages import Json
from stack_b.backends.protocol import OUTCOME_UNKNOWN, ModelCard
from stack_b.backends.shapes import ChunkShape, CompletionShape, EmbeddingsShape

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""2,048 embeddings of 3,072 numbers in decimal are about that."""
MAX_MODELS: Final = 10_000
_MODELS_TIMEOUT_S: Final = 5.0
_POOL: Final = httpx.Limits(max_connections=1_024, max_keepalive_connections=128, keepalive_expiry=30)
_DONE: Final = b"[DONE]"

# Of a 4xx, what is the client's to repair. Everything else is between us and the backend.
_REQUEST_REFUSED: Final = frozenset({400, 413, 422})


class OpenAiCompatible:
    """Satisfies `stack_b.backends.protocol.Backend`."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        api_key: str | None = None,
        models: tuple[ModelCard, ...] = (),
        timeout: timedelta = timedelta(seconds=300),
        connect_timeout: timedelta = timedelta(seconds=5),
        max_tokens_member: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`models` empty: ask the backend. `timeout` bounds the wait for the next bytes, not the whole answer."""
        self._name = name
        self._models = models
        # OpenAI's newer models refuse `max_tokens`; many servers only know `max_tokens`.
        by_host = "max_completion_tokens" if urlsplit(base_url).hostname == "api.openai.com" else "max_tokens"
        self._max_tokens_member = max_tokens_member or by_host
        headers = {"user-agent": "agentos", "accept-encoding": "identity"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(timeout.total_seconds(), connect=connect_timeout.total_seconds(), pool=5.0),
            limits=_POOL,
            trust_env=False,
            follow_redirects=False,
            transport=transport,
        )

    @property
    def name(self) -> str:
        return self._name

    async def aclose(self) -> None:
        await self._client.aclose()

    async def models(self) -> tuple[ModelCard, ...]:
        if self._models:
            return self._models
        listing = await self._json("GET", "models", None, timeout=_MODELS_TIMEOUT_S)
        entries = listing.get("data")
        if not isinstance(entries, list):
            raise self._broken("its list of models has no `data`")
        ids = [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        return tuple(_card(model) for model in ids[:MAX_MODELS])

    async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        answer = await self._json("POST", "chat/completions", self._chat_body(model, body, max_tokens))
        self._check(answer, CompletionShape)
        return answer

    async def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> AsyncGenerator[dict[str, Json], None]:
        members = self._chat_body(model, body, max_tokens)
        members |= {"stream": True, "stream_options": {"include_usage": True}}
        decoder = SseDecoder()
        async with self._answer("POST", "chat/completions", members) as response:
            async for piece in response.aiter_bytes():
                for event in decoder.feed(piece):
                    if event == _DONE:
                        return
                    yield self._chunk(event)
            for event in decoder.close():
                if event == _DONE:
                    return
                yield self._chunk(event)
        raise Unavailable(
            f"backend {self._name!r} broke off in the middle of its answer",
            code="upstream_error",
            details=OUTCOME_UNKNOWN,
        )

    async def embed(self, model: str, body: dict[str, Json]) -> dict[str, Json]:
        answer = await self._json("POST", "embeddings", {**body, "model": model})
        self._check(answer, EmbeddingsShape)
        return answer

    def _chat_body(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        return {**body, "model": model, self._max_tokens_member: max_tokens}

    async def _json(
        self, method: str, path: str, body: dict[str, Json] | None, *, timeout: float | None = None
    ) -> dict[str, Json]:
        async with self._answer(method, path, body, timeout=timeout) as response:
            pieces: list[bytes] = []
            size = 0
            async for piece in response.aiter_bytes():
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise self._broken("its answer is too large")
                pieces.append(piece)
        return self._object(b"".join(pieces))

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: dict[str, Json] | None, *, timeout: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        """The backend's 200, or the error that its status or silence means."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        request = self._client.build_request(
            method,
            path,
            content=content,
            headers=headers,
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else timeout,
        )
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code != httpx.codes.OK:
                    raise await self._refusal(response)
                yield response
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self._translated(error) from error

    def _translated(self, error: httpx.HTTPError) -> Unavailable:
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            return Unavailable(
                f"backend {self._name!r} can't be reached", code="upstream_error", details={"sent": False}
            )
        if isinstance(error, httpx.PoolTimeout):
            return Unavailable(f"too many calls to backend {self._name!r} at once")
        if isinstance(error, httpx.TimeoutException):
            return Unavailable(
                f"backend {self._name!r} did not answer in time", code="upstream_timeout", details=OUTCOME_UNKNOWN
            )
        return Unavailable(
            f"the connection to backend {self._name!r} broke", code="upstream_error", details=OUTCOME_UNKNOWN
        )

    async def _refusal(self, response: httpx.Response) -> AgentOSError:
        status = response.status_code
        told: dict[str, Json] = {"upstream_status": status}
        if status in {401, 403}:
            return Unavailable(
                f"backend {self._name!r} refused the node's credentials; the operator must renew them",
                code="upstream_auth_error",
                details=told,
            )
        if status not in _REQUEST_REFUSED:
            return Unavailable(
                f"backend {self._name!r} answered {status}",
                code="upstream_timeout" if status in {408, 504} else "upstream_error",
                details=told,
            )
        told |= await _identifiers(response)
        code = (
            "context_length_exceeded" if told.get("upstream_code") == "context_length_exceeded" else "invalid_request"
        )
        return InvalidArgument(f"backend {self._name!r} refused the request ({status})", code=code, details=told)

    def _chunk(self, event: bytes) -> dict[str, Json]:
        chunk = self._object(event)
        if "error" in chunk:
            raise Unavailable(f"backend {self._name!r} failed in the middle of its answer", code="upstream_error")
        self._check(chunk, ChunkShape)
        return chunk

    def _check(self, value: dict[str, Json], shape: type[Struct]) -> None:
        """What the pipeline relies on must be there; everything else in `value` is the backend's and is kept."""
        try:
            msgspec.convert(value, shape)
        except msgspec.ValidationError as error:
            # msgspec names paths and types, never values.
            raise self._broken(str(error)) from None

    def _object(self, raw: bytes) -> dict[str, Json]:
        try:
            return msgspec.json.decode(raw, type=dict[str, Json])
        except msgspec.DecodeError:
            raise self._broken("its answer is not a JSON object") from None

    def _broken(self, what: str) -> Unavailable:
        return Unavailable(f"backend {self._name!r} can't be understood: {what}", code="upstream_error")


async def _identifiers(response: httpx.Response) -> dict[str, Json]:
    """OpenAI's `code` and `param` of a refusal, when they look like names. Its text stays here: it may quote anything."""
    size = 0
    pieces: list[bytes] = []
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > 64 * 1024:
            return {}
    try:
        error = msgspec.json.decode(b"".join(pieces), type=dict[str, Json]).get("error")
    except msgspec.DecodeError:
        return {}
    if not isinstance(error, dict):
        return {}
    found = {f"upstream_{name}": error.get(name) for name in ("code", "param")}
    return {name: value for name, value in found.items() if isinstance(value, str) and _is_name(value)}


def _is_name(text: str) -> bool:
    return len(text) <= 64 and text.isascii() and text.replace("_", "").replace(".", "").isalnum()  # noqa: PLR2004 - a name, not prose


def _card(model: str) -> ModelCard:
    # The listing doesn't tell what a model does; its name usually does.
    embeds = "embed" in model.lower()
    return ModelCard(id=model, upstream=model, chat=not embeds, embed=embeds)
