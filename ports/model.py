"""Model port: chat, embeddings and policy, whatever serves them.

Clauses (each has a test in `conformance.model`):

* MOD-1  `chat` answers with a message, a finish reason, usage, the policy outcome and the route that served it.
* MOD-2  `stream` yields deltas whose texts and tool calls, joined, are the reply its last delta carries; the last delta,
         and only it, has `reply`.
* MOD-3  A model the caller may not use raises `PermissionDenied` (`model_not_entitled`), the same for one that does not
         exist.
* MOD-4  `embed` gives one vector per input, in order, all of the same length.
* MOD-5  `policy_check` decides as `chat` would, without a model call.
* MOD-6  `list_models` gives what the caller may use, sorted by id; `chat` accepts each of them that can chat.
* MOD-7  A backend that does not answer raises `Unavailable`.
* MOD-8  Two calls with the same `step_key` and an equal request, streamed or not, are the same call. Where `journaled`,
         it is made once: whoever comes later, or at the same time, gets the same reply, and `route.replayed` says so.
         Another request under the same key then raises `Conflict` (`idempotency_key_reused`). A key is its tenant's and
         principal's: another one's same key is another call.
* MOD-9  `abort` ends the call under way under that key, whichever process makes it: it ends in the backend too, its
         callers get an error, and the key is free again. A key that nobody calls under, or somebody else, is left as
         it is.
* MOD-10 Where `journaled`, a call with a `step_key` goes on when its caller leaves; a later one gets its reply.
"""

from collections.abc import AsyncIterator
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from ports.context import AuthContext
from ports.messages import Json, Usage

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]


class ToolRequest(Struct, frozen=True, kw_only=True):
    """A model's wish to call a tool. `arguments` is the model's text: JSON if the model behaves."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: Role
    content: str | None = None
    tool_calls: tuple[ToolRequest, ...] = ()
    tool_call_id: str | None = None


class ToolOffer(Struct, frozen=True, kw_only=True):
    name: str
    description: str
    parameters: dict[str, Json]


class ChatRequest(Struct, frozen=True, kw_only=True):
    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolOffer, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    step_key: str | None = None
    """`step_key(run, n)` when a run asks: the call is paid once under it."""
    agent: str = ""
    """Here and below: whose call it is, where budgets are counted by that. Not part of what makes requests equal."""
    session: str = ""


class PolicyOutcome(Struct, frozen=True, kw_only=True, gc=False):
    decision: Literal["allowed", "redacted", "blocked"]
    reasons: tuple[str, ...] = ()


class Attempt(Struct, frozen=True, kw_only=True, gc=False):
    backend: str
    status: int
    latency_ms: int
    tokens: int = 0
    cost_nanousd: int = 0
    reason: str | None = None


class Route(Struct, frozen=True, kw_only=True):
    """Who served a call, for audit and debugging."""

    backend: str
    model: str
    attempts: tuple[Attempt, ...] = ()
    replayed: bool = False
    """Answered from the journal of its step: all the rest is what the first call was told, and nothing was paid again."""
    joined: bool = False
    """Besides `replayed`: that call was still under way when this request came."""
    possible_duplicate: bool = False
    """Whoever made this step's call before was lost without a word, and may have paid for it."""


class ChatReply(Struct, frozen=True, kw_only=True):
    message: Message
    finish_reason: FinishReason
    usage: Usage
    policy_outcome: PolicyOutcome
    route: Route


class ChatDelta(Struct, frozen=True, kw_only=True):
    """A piece of a reply. Tool calls arrive whole."""

    text: str = ""
    tool_calls: tuple[ToolRequest, ...] = ()
    reply: ChatReply | None = None


class Embeddings(Struct, frozen=True, kw_only=True):
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    route: Route


class ModelInfo(Struct, frozen=True, kw_only=True):
    id: str
    backend: str
    chat: bool = True
    embed: bool = False


class ModelCapabilities(Struct, frozen=True, kw_only=True):
    tools: bool = False
    journaled: bool = False
    """Whether a call with a `step_key` is made once: MOD-8 and MOD-10."""


class ModelPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many tasks; calls are cancellable.

    Every method may raise `PermissionDenied` (`policy_blocked`, `tool_not_permitted`, `tenant_disabled`),
    `ResourceExhausted` (`budget_exceeded`, `budget_in_flight`, `rate_limited`), `InvalidArgument` and `Unavailable`
    (`upstream_error`, `upstream_timeout`, `unavailable`).
    """

    @property
    def capabilities(self) -> ModelCapabilities: ...

    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply: ...

    def stream(self, auth: AuthContext, request: ChatRequest) -> AsyncIterator[ChatDelta]: ...

    async def abort(self, auth: AuthContext, step_key: str) -> None:
        """Returns once the backend's call has ended, as far as this process can tell."""
        ...

    async def embed(self, auth: AuthContext, model: str, inputs: tuple[str, ...]) -> Embeddings: ...

    async def policy_check(self, auth: AuthContext, request: ChatRequest) -> PolicyOutcome: ...

    async def list_models(self, auth: AuthContext) -> tuple[ModelInfo, ...]: ...
