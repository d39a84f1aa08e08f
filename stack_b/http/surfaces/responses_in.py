"""OpenAI's responses → the canonical call. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from ports.messages import Json
from stack_b.canonical import ChatCall
from stack_b.http.about import about
from stack_b.http.parse import at_most, chat_call, refuse_steering
from stack_b.http.surfaces.responses_out import ResponsesWire
from stack_b.http.surfaces.responses_wire import (
    AnyItem,
    AnyPart,
    FunctionCallItem,
    FunctionOutputItem,
    FunctionTool,
    InputAudio,
    InputFile,
    InputImage,
    NamedFunction,
    ObjectFormat,
    PlainFormat,
    RefusalPart,
    ResponsesBody,
    SchemaFormat,
    TextConfig,
)
from stack_b.http.surfaces.wire import Wire, bare, given, joined, refuse_uncarried, refused, strictly
from stack_b.limits import Limits

HARMLESS: Final[Mapping[str, tuple[Json, ...]]] = {
    "store": (False,),
    "background": (False,),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "truncation": ("disabled",),
    # Clients that keep the conversation themselves ask for reasoning by itself; there is none to give.
    "include": ([], ["reasoning.encrypted_content"]),
    "top_logprobs": (0,),
    "max_tool_calls": (),
    "moderation": (),
    "context_management": (),
    "prompt_cache_options": (),
    "access_programs": (),
    "image": (),
}
"""Members that ask for what isn't done here, with the values that don't. Null never does."""

# What the canonical form, or another surface, calls otherwise: passed on, it would widen what is counted.
_FOREIGN: Final = ("max_tokens", "max_completion_tokens", "n")
# Members that backends know under the same name.
_SAME: Final = (
    "temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "service_tier",
)  # fmt: skip


def responses(value: dict[str, Json], limits: Limits) -> tuple[ChatCall, Wire]:
    """Raises `InvalidArgument` (`validation_failed`) and `Unsupported` with the member's `details.path`."""
    refuse_steering(value, limit="max_output_tokens")
    for name in _FOREIGN:
        if name in value:
            raise refused(f"$.{name}", "here, say how much may be written with max_output_tokens")
    refuse_uncarried(value, HARMLESS)
    body = strictly(_normal(value), ResponsesBody)
    if isinstance(body.input, list):
        # The instructions are a message too.
        at_most(len(body.input) + (body.instructions is not None), limits.messages, "input")
    most = body.max_output_tokens
    if most is not None and most > limits.max_tokens:
        raise refused("$.max_output_tokens", f"it is at most {limits.max_tokens}")
    call = replace(chat_call(_chat(body), limits), metadata=body.metadata or {}, about=about(body.metadata))
    return call, ResponsesWire(_echo(body, value))


def _normal(value: dict[str, Json]) -> dict[str, Json]:
    """Without nulls, and with the `type` that a message may leave out."""
    body: dict[str, Json] = bare(value)
    if isinstance(body.get("input"), list):
        body["input"] = [_item(item) for item in body["input"]]
    if isinstance(body.get("tools"), list):
        body["tools"] = [bare(tool) for tool in body["tools"]]
    return body | {name: bare(body[name]) for name in ("reasoning", "text", "stream_options") if name in body}


def _item(item: Json) -> Json:
    item = bare(item)
    if not isinstance(item, dict):
        return item
    if "type" not in item and "role" in item:
        item = {"type": "message", **item}
    for name in ("content", "output"):
        if isinstance(item.get(name), list):
            item[name] = [bare(part) for part in item[name]]
    return item


def _chat(body: ResponsesBody) -> dict[str, Json]:
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    said = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else _messages(body.input)
    text = body.text or TextConfig()
    return given(
        model=body.model,
        messages=[*system, *said],
        tools=[_tool(tool) for tool in body.tools] or None,
        tool_choice=_choice(body),
        max_tokens=body.max_output_tokens,
        stream=body.stream,
        response_format=_format(text),
        verbosity=text.verbosity,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        **{name: getattr(body, name) for name in _SAME},
    )


def _echo(body: ResponsesBody, value: dict[str, Json]) -> dict[str, Json]:
    """What a response repeats of its request."""
    parallel = True if body.parallel_tool_calls is None else body.parallel_tool_calls
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": parallel,
        "previous_response_id": None,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "background": False,
        "store": False,
        "temperature": body.temperature,
        "text": value.get("text") or {"format": {"type": "text"}},
        "tool_choice": value.get("tool_choice") or "auto",
        "tools": value.get("tools") or [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _messages(items: list[AnyItem]) -> list[dict[str, Json]]:
    """Function calls join the assistant's message before them: in a chat they are one turn."""
    messages: list[dict[str, Json]] = []
    for item in items:
        if isinstance(item, FunctionCallItem):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionOutputItem):
            content = _content(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        else:
            messages.append({"role": item.role, "content": _content(item.content)})
    return messages


def _content(content: str | Sequence[AnyPart]) -> Json:
    return content if isinstance(content, str) else joined([_part(part) for part in content])


def _part(part: AnyPart) -> dict[str, Json]:
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": given(url=part.image_url, detail=part.detail)}
    if isinstance(part, InputFile):
        return {"type": "file", "file": given(file_data=part.file_data, filename=part.filename)}
    if isinstance(part, InputAudio):
        return {"type": "input_audio", "input_audio": part.input_audio}
    if isinstance(part, RefusalPart):
        return {"type": "refusal", "refusal": part.refusal}
    return {"type": "text", "text": part.text}


def _tool(tool: FunctionTool) -> dict[str, Json]:
    function = given(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return {"type": "function", "function": function}


def _choice(body: ResponsesBody) -> Json:
    if isinstance(body.tool_choice, NamedFunction):
        return {"type": "function", "function": {"name": body.tool_choice.name}}
    return body.tool_choice


def _format(text: TextConfig) -> Json:
    match text.format:
        case SchemaFormat() as wished:
            schema = given(name=wished.name, schema=wished.schema, description=wished.description, strict=wished.strict)
            return {"type": "json_schema", "json_schema": schema}
        case ObjectFormat():
            return {"type": "json_object"}
        case PlainFormat() | None:
            return None
