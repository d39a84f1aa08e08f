"""What `/v1/messages` takes and gives. Strict, because it is translated: what has no place here can't be passed on."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from ports.messages import Json
from ports.model import PolicyOutcome, Route
from stack_b.http.wire import UsageReceipt


class Base64Source(Struct, frozen=True, kw_only=True, tag_field="type", tag="base64", forbid_unknown_fields=True):
    media_type: str
    data: str


class UrlSource(Struct, frozen=True, kw_only=True, tag_field="type", tag="url", forbid_unknown_fields=True):
    url: str


class TextSource(Struct, frozen=True, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class Block(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    cache_control: Json = None
    """A hint about cost, without effect here."""


class TextBlock(Block, frozen=True, kw_only=True, tag="text"):
    text: str
    citations: list[Json] = []
    """Of an earlier answer; backends here have no use for them."""


class ImageBlock(Block, frozen=True, kw_only=True, tag="image"):
    source: Base64Source | UrlSource


class DocumentBlock(Block, frozen=True, kw_only=True, tag="document"):
    source: Base64Source | TextSource
    title: str | None = None


class ToolUseBlock(Block, frozen=True, kw_only=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Json]


class ToolResultBlock(Block, frozen=True, kw_only=True, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock] = ""
    is_error: bool = False


AnyBlock = TextBlock | ImageBlock | DocumentBlock | ToolUseBlock | ToolResultBlock


class MessageBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[AnyBlock]


class Tool(Struct, frozen=True, kw_only=True, tag_field="type", tag="custom", forbid_unknown_fields=True):
    name: str
    input_schema: dict[str, Json]
    description: str | None = None
    strict: bool | None = None
    cache_control: Json = None
    eager_input_streaming: bool | None = None
    """Calls come whole in any case."""


class Choice(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    disable_parallel_tool_use: bool | None = None


class AutoChoice(Choice, frozen=True, kw_only=True, tag="auto"):
    pass


class AnyChoice(Choice, frozen=True, kw_only=True, tag="any"):
    pass


class NoChoice(Choice, frozen=True, kw_only=True, tag="none"):
    pass


class ToolChoice(Choice, frozen=True, kw_only=True, tag="tool"):
    name: str


class Metadata(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user_id: str | None = None
    agent_id: str | None = None
    """Here and below: what budgets are counted by. Sent nowhere."""
    session_id: str | None = None


class JsonFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    schema: dict[str, Json]


class OutputConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    effort: str | None = None
    format: JsonFormat | None = None


class Thinking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the model likes, or not at all: to order it takes a backend that can be told."""

    type: Literal["adaptive", "disabled"]
    display: Literal["omitted"] | None = None


class CountBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request says to a model. Other members are refused: none of them could be passed on."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[MessageBody], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] = []
    tool_choice: AutoChoice | AnyChoice | NoChoice | ToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None
    cache_control: Json = None


class MessagesBody(CountBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Anthropic's request."""

    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] = []
    metadata: Metadata | None = None
    service_tier: Literal["auto"] | None = None
    stream: bool | None = None


class MessageUsage(UsageReceipt, frozen=True, kw_only=True):
    input_tokens: int
    """Without those read from the backend's cache."""
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageView(Struct, frozen=True, kw_only=True):
    """Anthropic's message, and the receipt. `content` has text and tool use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Json]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
    stop_sequence: str | None
    usage: MessageUsage
    policy_outcome: PolicyOutcome
    route: Route
    correlation_id: str
    tenant_id: str


class MessageEvent(Struct, frozen=True, kw_only=True):
    """The data of an event named like its `type`. The receipt is in the `message_delta`."""

    type: str
    index: int | None = None
    delta: dict[str, Json] | None = None
    content_block: dict[str, Json] | None = None
    message: dict[str, Json] | None = None
    usage: MessageUsage | None = None
    policy_outcome: PolicyOutcome | None = None
    route: Route | None = None
    correlation_id: str | None = None
    tenant_id: str | None = None


class TokenCount(Struct, frozen=True, kw_only=True):
    input_tokens: int
    estimated: bool
    """Always: only the backend's tokenizer knows."""
    correlation_id: str
    tenant_id: str
