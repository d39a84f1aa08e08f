"""What the gateway's endpoints take and give. Requests are lenient: `stack_b.members` decides what else is taken."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from ports.messages import Json
from ports.model import PolicyOutcome, Route
from stack_b.redaction.findings import Finding

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ToolCallFunction(Struct, frozen=True, kw_only=True):
    name: str
    arguments: str


class ToolCallBody(Struct, frozen=True, kw_only=True):
    id: str
    type: str = "function"
    function: ToolCallFunction | None = None


class MessageBody(Struct, frozen=True, kw_only=True):
    role: Role
    content: str | list[dict[str, Json]] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None


class FunctionBody(Struct, frozen=True, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Json] | None = None


class ToolBody(Struct, frozen=True, kw_only=True):
    type: str = "function"
    function: FunctionBody | None = None


class StreamOptions(Struct, frozen=True, kw_only=True, gc=False):
    include_usage: bool | None = None


class ChatBody(Struct, frozen=True, kw_only=True):
    """OpenAI's request. Members that steer are refused; which others are passed on, `stack_b.members` says."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[MessageBody], Meta(min_length=1)]
    tools: list[ToolBody] | None = None
    tool_choice: str | dict[str, Json] | None = None
    parallel_tool_calls: bool | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Json] | None = None
    seed: int | None = None
    user: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class PlainMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    role: Role
    content: str


class PlainChatBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A `ChatBody` of texts and settings only, as most are. Whatever has anything else is no such body.

    `tests/unit/test_stack_b_plain.py` holds it to what is found by looking.
    """

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[PlainMessage], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class EmbeddingsBody(Struct, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | list[str]
    """Text. Token ids are refused: policy can't read them."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=16_384)] | None = None
    metadata: dict[str, Json] | None = None
    """`agent_id` and `session_id`: what budgets are counted by. Sent nowhere."""
    user: str | None = None


class UsageReceipt(Struct, frozen=True, kw_only=True):
    """What the gateway adds to a usage, whatever its counts are called."""

    latency_ms: int
    gateway_ms: float
    """Of `latency_ms`, what was not spent waiting for backends."""
    cost_nanousd: int
    estimated: bool
    """True when any part was counted by the gateway because the backend reported none."""
    ttft_ms: int | None = None
    """To the first content of a stream."""
    budgets_over: list[str] | None = None
    """Soft budgets that are beyond their limits."""
    limited_by: str | None = None
    """The budget that left no room for more of the answer, which then ends with `length`."""


class Usage(UsageReceipt, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Receipt(Struct, frozen=True, kw_only=True):
    usage: Usage
    policy_outcome: PolicyOutcome
    route: Route
    correlation_id: str
    tenant_id: str


class Reply(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"]
    content: str | None = None
    tool_calls: list[ToolCallBody] | None = None


class Choice(Struct, frozen=True, kw_only=True):
    index: int
    message: Reply
    finish_reason: str | None = None


class ChatCompletion(Receipt, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]


class ChunkChoice(Struct, frozen=True, kw_only=True):
    index: int
    delta: dict[str, Json]
    finish_reason: str | None = None


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One `data:` line; after the last one comes `data: [DONE]`. The receipt's members are on the last finish chunk."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    policy_outcome: PolicyOutcome | None = None
    route: Route | None = None
    correlation_id: str | None = None
    tenant_id: str | None = None


class Vector(Struct, frozen=True, kw_only=True):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian 32-bit floats."""


class EmbeddingList(Receipt, frozen=True, kw_only=True):
    object: Literal["list"]
    model: str
    data: list[Vector]


class ModelView(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    """The backend that serves it."""
    chat: bool
    embed: bool
    tenant_id: str
    correlation_id: str


class ModelList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelView]
    tenant_id: str
    correlation_id: str


class StepBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    step_key: str


class StepView(Struct, frozen=True, kw_only=True):
    step_key: str
    aborted: bool
    """Whether a call was under way."""
    tenant_id: str
    correlation_id: str


class BudgetView(Struct, frozen=True, kw_only=True):
    unit: Literal["tokens"]
    limit: int
    settled: int
    held: int
    window_end: str
    would_hold: int
    fits: bool


class PolicyVerdict(Struct, frozen=True, kw_only=True):
    policy_outcome: PolicyOutcome
    findings: list[Finding]
    refusal: str | None
    """The code of the error that a call would get from policy."""
    budget: BudgetView
    tenant_id: str
    correlation_id: str


class Health(Struct, frozen=True, kw_only=True):
    status: Literal["ok"] = "ok"


class Readiness(Struct, frozen=True, kw_only=True):
    status: Literal["ok", "unavailable"]
    dependencies: dict[str, str]
    """`ok`, or why not, by dependency."""
    models: int
    """How many models are served; none is no reason not to be ready."""
    configuration: "InForce"


class InForce(Struct, frozen=True, kw_only=True):
    """The configuration that the gateway goes by. One that can't be used is no reason not to be ready: the last one is."""

    source: Literal["file", "store", "none"]
    version: int
    """Of the store; 0 for a file, or where nothing is stored."""
    digest: str
    """Equal for documents that mean the same."""
    refused: bool
    """The newest one can't be used here, and an older one is in force; the log says why."""
    refused_version: int
    """Which one, where it has a number."""
    store_answers: bool
