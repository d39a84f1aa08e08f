"""ModelPort in this process: answers by a rule, the same each time. A test double, and a model for development.

It is not a language model: `echo` repeats the last user message, `scripted` says what it was told to say.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.store import own
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, PermissionDenied, Unavailable
from ports.ids import PrincipalId, TenantId
from ports.messages import Usage
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
)

Rule: TypeAlias = Callable[[AuthContext, ChatRequest], Message | Coroutine[Any, Any, Message]]
"""What to answer, at once or later. May raise anything of the error tree, as a backend would."""
Step: TypeAlias = tuple[TenantId, str, str, PrincipalId]
"""Tenant, namespace, step key."""

BACKEND: Final = "inproc"
_CAPABILITIES: Final = ModelCapabilities(tools=True, journaled=True)
_DIMENSIONS: Final = 16


class InprocModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    chat_models: tuple[str, ...] = ("echo",)
    embed_models: tuple[str, ...] = ("echo-embed",)
    only_for: dict[str, tuple[TenantId, ...]] = {}
    """Tenants that may use a model; one not named here is free to all."""
    blocked_words: tuple[str, ...] = ()
    """Policy: a request with one of these in a message is blocked."""


def echo(_auth: AuthContext, request: ChatRequest) -> Message:
    said = [message.content for message in request.messages if message.role == "user" and message.content]
    return Message(role="assistant", content=said[-1] if said else "")


def scripted(replies: Iterable[Message | str]) -> Rule:
    """Says `replies` in order, whatever it is asked; afterwards it is unavailable."""
    left = iter(replies)

    def rule(_auth: AuthContext, _request: ChatRequest) -> Message:
        reply = next(left, None)
        if reply is None:
            raise Unavailable("the script has no more replies; give it one for each call", code="upstream_error")
        return Message(role="assistant", content=reply) if isinstance(reply, str) else reply

    return rule


class InprocModel:
    """Satisfies `ModelPort`. Keeps a journal: a repeated step is answered without asking the rule again."""

    def __init__(self, config: InprocModelConfig, rule: Rule = echo) -> None:
        self._config = config
        self._rule = rule
        self._journal: dict[Step, tuple[str, ChatReply]] = {}
        self._calls: dict[Step, tuple[str, asyncio.Task[ChatReply]]] = {}

    @property
    def capabilities(self) -> ModelCapabilities:
        return _CAPABILITIES

    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        outcome = await self.policy_check(auth, request)
        if outcome.decision == "blocked":
            raise PermissionDenied(f"policy blocks this request: {', '.join(outcome.reasons)}", code="policy_blocked")
        if request.step_key is None:
            return await self._answer(self._rule(auth, request), request, outcome)
        return own(await self._answer_once(_step(auth, request.step_key), auth, request, outcome))

    async def abort(self, auth: AuthContext, step_key: str) -> None:
        under_way = self._calls.get(_step(auth, step_key))
        if under_way is not None:
            under_way[1].cancel()
            await asyncio.wait({under_way[1]})

    async def stream(self, auth: AuthContext, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        reply = await self.chat(auth, request)
        for piece in pieces(reply.message.content or ""):
            yield ChatDelta(text=piece)
        if reply.message.tool_calls:
            yield ChatDelta(tool_calls=reply.message.tool_calls)
        yield ChatDelta(reply=reply)

    async def embed(self, auth: AuthContext, model: str, inputs: tuple[str, ...]) -> Embeddings:
        self._entitle(auth, model, self._config.embed_models)
        if not inputs:
            raise InvalidArgument("nothing to embed; give at least one text")
        return Embeddings(
            vectors=tuple(vector_of(text) for text in inputs),
            usage=Usage(prompt_tokens=sum(tokens_in(text) for text in inputs), estimated=True),
            route=Route(backend=BACKEND, model=model),
        )

    async def policy_check(self, auth: AuthContext, request: ChatRequest) -> PolicyOutcome:
        self._entitle(auth, request.model, self._config.chat_models)
        said = " ".join(message.content or "" for message in request.messages).casefold()
        if any(word.casefold() in said for word in self._config.blocked_words):
            return PolicyOutcome(decision="blocked", reasons=("blocked_words",))
        return PolicyOutcome(decision="allowed")

    async def list_models(self, auth: AuthContext) -> tuple[ModelInfo, ...]:
        served = [
            *(ModelInfo(id=model, backend=BACKEND) for model in self._config.chat_models),
            *(ModelInfo(id=model, backend=BACKEND, chat=False, embed=True) for model in self._config.embed_models),
        ]
        return tuple(sorted((one for one in served if self._may_use(auth, one.id)), key=lambda one: one.id))

    def _may_use(self, auth: AuthContext, model: str) -> bool:
        return model not in self._config.only_for or auth.tenant in self._config.only_for[model]

    def _entitle(self, auth: AuthContext, model: str, served: tuple[str, ...]) -> None:
        if model not in served or not self._may_use(auth, model):
            raise PermissionDenied(
                f"the model {model!r} is not one this tenant may use here; list the models to see which are",
                code="model_not_entitled",
            )

    async def _answer_once(
        self, step: Step, auth: AuthContext, request: ChatRequest, outcome: PolicyOutcome
    ) -> ChatReply:
        """The step's reply. The call that makes it is a task of its own, which callers join and may leave."""
        known = self._journal.get(step) or self._calls.get(step)
        digest = digest_of(request)
        if known is not None and known[0] != digest:
            raise Conflict(f"the step key {step[2]!r} belongs to another request", code="idempotency_key_reused")
        if step in self._journal:
            return replayed(self._journal[step][1])
        first = step not in self._calls
        if first:
            said = self._rule(auth, request)
            if isinstance(said, Message):
                reply = await self._answer(said, request, outcome)
                self._journal[step] = (digest, reply)
                return reply
            made = asyncio.create_task(self._answer(said, request, outcome))
            self._calls[step] = (digest, made)
            made.add_done_callback(lambda task: self._ended(step, digest, task))
        call = self._calls[step][1]
        await asyncio.wait({call})
        if call.cancelled():
            raise Conflict(f"the call under the step key {step[2]!r} was aborted")
        return call.result() if first else replayed(call.result())

    def _ended(self, step: Step, digest: str, call: asyncio.Task[ChatReply]) -> None:
        del self._calls[step]
        if not call.cancelled() and call.exception() is None:
            self._journal[step] = (digest, call.result())

    async def _answer(
        self, said: Message | Coroutine[Any, Any, Message], request: ChatRequest, outcome: PolicyOutcome
    ) -> ChatReply:
        message, finish = limited(said if isinstance(said, Message) else await said, request.max_tokens)
        return ChatReply(
            message=message,
            finish_reason=finish,
            usage=Usage(
                prompt_tokens=sum(tokens_in(one.content or "") for one in request.messages),
                completion_tokens=tokens_in(message.content or ""),
                estimated=True,
            ),
            policy_outcome=outcome,
            route=Route(backend=BACKEND, model=request.model),
        )


def _step(auth: AuthContext, key: str) -> Step:
    return (auth.tenant, auth.namespace, key, auth.principal)


def replayed(reply: ChatReply) -> ChatReply:
    return replace(reply, route=replace(reply.route, replayed=True))


def limited(message: Message, max_tokens: int | None) -> tuple[Message, FinishReason]:
    """The message cut to `max_tokens`, and why it ends where it ends."""
    if message.tool_calls:
        return message, "tool_calls"
    kept = list(pieces(message.content or ""))
    if max_tokens is not None and len(kept) > max_tokens:
        return replace(message, content="".join(kept[:max_tokens])), "length"
    return message, "stop"


def pieces(text: str) -> list[str]:
    """The text in pieces that join to it: a word with the space before it. Stands in for tokens."""
    found: list[str] = []
    for word in text.split(" "):
        found.append(word if not found else " " + word)
    return found if text else []


def tokens_in(text: str) -> int:
    return len(pieces(text))


def vector_of(text: str) -> tuple[float, ...]:
    """Equal for equal texts, and means nothing."""
    digest = hashlib.sha256(text.encode()).digest()
    return tuple(byte / 255 for byte in digest[:_DIMENSIONS])


def digest_of(request: ChatRequest) -> str:
    return hashlib.sha256(msgspec.json.encode(request, order="deterministic")).hexdigest()


@asynccontextmanager
async def open_model(config: InprocModelConfig, _given: Given) -> AsyncIterator[ModelPort]:
    yield InprocModel(config)


SPEC: Final[AdapterSpec[InprocModelConfig, ModelPort]] = AdapterSpec(
    config=InprocModelConfig, capabilities=lambda _: _CAPABILITIES, open=open_model
)
