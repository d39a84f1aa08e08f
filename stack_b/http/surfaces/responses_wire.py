"""What `/v1/responses` takes and gives. Strict, because it is translated: what has no place here can't be passed on."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from ports.messages import Json
from ports.model import PolicyOutcome, Route
from stack_b.http.wire import UsageReceipt


class Part(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    prompt_cache_breakpoint: Json = None
    """A hint about cost, without effect here."""


class InputText(Part, frozen=True, kw_only=True, tag="input_text"):
    text: str


class OutputText(Part, frozen=True, kw_only=True, tag="output_text"):
    text: str
    annotations: list[Json] = []
    logprobs: list[Json] = []


class RefusalPart(Part, frozen=True, kw_only=True, tag="refusal"):
    refusal: str


class InputImage(Part, frozen=True, kw_only=True, tag="input_image"):
    image_url: str
    detail: str | None = None


class InputFile(Part, frozen=True, kw_only=True, tag="input_file"):
    file_data: str
    filename: str | None = None


class InputAudio(Part, frozen=True, kw_only=True, tag="input_audio"):
    input_audio: dict[str, Json]


AnyPart = InputText | OutputText | RefusalPart | InputImage | InputFile | InputAudio


class Item(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    id: str | None = None
    status: str | None = None


class MessageItem(Item, frozen=True, kw_only=True, tag="message"):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[AnyPart]
    phase: str | None = None


class FunctionCallItem(Item, frozen=True, kw_only=True, tag="function_call"):
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(Item, frozen=True, kw_only=True, tag="function_call_output"):
    call_id: str
    output: str | list[InputText | InputImage | InputFile]


AnyItem = MessageItem | FunctionCallItem | FunctionOutputItem


class FunctionTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class NamedFunction(Struct, frozen=True, kw_only=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    name: str


class Reasoning(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    effort: str | None = None
    summary: Literal["auto"] | None = None
    """If there is one to give; here there never is."""


class PlainFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    pass


class ObjectFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    pass


class SchemaFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    name: str
    schema: dict[str, Json]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: PlainFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: str | None = None


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: Literal[False] | None = None


class ResponsesBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's request, stateless: nothing is stored, so there is nothing to refer to. Other members are refused."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | Annotated[list[AnyItem], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: list[FunctionTool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    """Given back, and sent nowhere."""
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Taken with the values that change nothing; see `responses_in.HARMLESS`.
    store: bool | None = None
    background: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None


class InputDetails(Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(UsageReceipt, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseView(Struct, frozen=True, kw_only=True):
    """OpenAI's response object, and the receipt. `output` has messages and function calls."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Json]]
    usage: ResponseUsage | None = None
    error: dict[str, Json] | None = None
    incomplete_details: dict[str, Json] | None = None
    store: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    policy_outcome: PolicyOutcome | None = None
    route: Route | None = None
    correlation_id: str | None = None
    tenant_id: str | None = None


class ResponseEvent(Struct, frozen=True, kw_only=True):
    """The data of an event named like its `type`. The receipt is in the `response` of the last one."""

    type: str
    sequence_number: int
    response: ResponseView | None = None
