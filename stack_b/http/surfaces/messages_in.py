"""Anthropic's messages → the canonical call. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import asdict, replace

from ports.messages import Json
from stack_b.budget.estimate import MEDIA_TOKENS, estimated_tokens
from stack_b.canonical import ChatCall
from stack_b.http.about import about
from stack_b.http.parse import at_most, chat_call, refuse_steering
from stack_b.http.surfaces.messages_out import MessagesWire
from stack_b.http.surfaces.messages_wire import (
    AnyBlock,
    AnyChoice,
    Base64Source,
    CountBody,
    DocumentBlock,
    ImageBlock,
    MessageBody,
    MessagesBody,
    NoChoice,
    TextBlock,
    TextSource,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from stack_b.http.surfaces.wire import Wire, bare, given, joined, refuse_uncarried, refused, strictly, uncarried
from stack_b.limits import Limits

HARMLESS: Final[Mapping[str, tuple[Json, ...]]] = {
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": (),
    "service_tier": ("auto",),
    "speed": ("standard",),
    "user_profile_id": (),
    "workspace_id": (),
}
"""Members that ask for what isn't done here, with the values that don't. Null never does."""

FAILED: Final = "The tool failed:"
"""Said before the result of a tool that failed: in a chat completion a result has no other place for it."""

# What the canonical form calls otherwise: passed on, it would widen what is counted.
_FOREIGN: Final = ("max_completion_tokens", "n")


def messages(value: dict[str, Json], limits: Limits) -> tuple[ChatCall, Wire]:
    """Raises `InvalidArgument` (`validation_failed`) and `Unsupported` with the member's `details.path`."""
    body = strictly(_taken(value), MessagesBody)
    at_most(len(body.stop_sequences), limits.stop_strings, "stop_sequences")
    if body.max_tokens > limits.max_tokens:
        raise refused("$.max_tokens", f"it is at most {limits.max_tokens}")
    more = given(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences or None,
        user=None if body.metadata is None else body.metadata.user_id,
        stream=body.stream,
    )
    told = {} if body.metadata is None else asdict(body.metadata)
    call = replace(chat_call(_chat(body, limits) | more, limits), about=about(told))
    return call, MessagesWire(tuple(body.stop_sequences))


def counted(value: dict[str, Json], limits: Limits) -> ChatCall:
    """The call that `count_tokens` is about. Raises like `messages`."""
    return chat_call(_chat(strictly(_taken(value), CountBody), limits), limits)


def input_tokens(call: ChatCall) -> int:
    """About how many tokens the call says to a model: texts by their size, and the allowance for each medium."""
    media = 0
    texts: list[Json] = []
    for message in call.members["messages"]:
        content = message["content"]
        parts = content if isinstance(content, list) else []
        said = [part for part in parts if part["type"] == "text"]
        media += len(parts) - len(said)
        texts.append({**message, "content": said} if parts else message)
    size = len(msgspec.json.encode({**call.members, "messages": texts}))
    return estimated_tokens(size) + MEDIA_TOKENS * media


def _taken(value: dict[str, Json]) -> dict[str, Json]:
    """Without nulls, and with the `type` that a tool may leave out."""
    refuse_steering(value, limit="max_tokens")
    for name in _FOREIGN:
        if name in value:
            raise refused(f"$.{name}", "here, say how much may be written with max_tokens")
    refuse_uncarried(value, HARMLESS)
    body: dict[str, Json] = bare(value)
    body.pop("speed", None)
    if isinstance(body.get("messages"), list):
        body["messages"] = [_blocks(bare(message)) for message in body["messages"]]
    if isinstance(body.get("system"), list):
        body["system"] = [bare(block) for block in body["system"]]
    if isinstance(body.get("tools"), list):
        body["tools"] = [
            {"type": "custom", **tool} if isinstance(tool, dict) and "type" not in tool else tool
            for tool in map(bare, body["tools"])
        ]
    names = ("metadata", "output_config", "thinking", "tool_choice")
    return body | {name: bare(body[name]) for name in names if name in body}


def _blocks(holder: Json) -> Json:
    """A message or a tool's result, its blocks without nulls."""
    if isinstance(holder, dict) and isinstance(holder.get("content"), list):
        return {**holder, "content": [_blocks(bare(block)) for block in holder["content"]]}
    return holder


def _chat(body: CountBody, limits: Limits) -> dict[str, Json]:
    at_most(len(body.messages), limits.messages, "messages")
    last = len(body.messages) - 1
    if body.messages[last].role == "assistant":
        raise uncarried(f"$.messages[{last}].role", "backends here can't go on in the middle of an answer")
    system = [] if body.system is None else [{"role": "system", "content": _content(body.system)}]
    config = body.output_config
    wished = None if config is None or config.format is None else config.format.schema
    return given(
        model=body.model,
        messages=[*system, *(said for number, one in enumerate(body.messages) for said in _messages(number, one))],
        tools=[_tool(tool) for tool in body.tools] or None,
        tool_choice=_choice(body),
        parallel_tool_calls=_parallel(body),
        reasoning_effort=None if config is None else config.effort,
        response_format=None if wished is None else _format(wished),
    )


def _messages(number: int, message: MessageBody) -> list[dict[str, Json]]:
    """A turn may be several messages of a chat: each tool's result is one of its own, and comes before what is said."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    path = f"$.messages[{number}].content"
    results = [_result(block) for block in message.content if isinstance(block, ToolResultBlock)]
    calls = [_call(block) for block in message.content if isinstance(block, ToolUseBlock)]
    if results and message.role != "user":
        raise refused(path, "a tool_result belongs to the user's turn")
    if calls and message.role != "assistant":
        raise refused(path, "a tool_use belongs to the assistant's turn")
    said = [block for block in message.content if not isinstance(block, ToolResultBlock | ToolUseBlock)]
    if not said and (results or calls):
        spoken = [{"role": "assistant", "content": None, "tool_calls": calls}] if calls else []
        return [*results, *spoken]
    spoken = [{"role": message.role, "content": _content(said)} | ({"tool_calls": calls} if calls else {})]
    return [*results, *spoken]


def _result(block: ToolResultBlock) -> dict[str, Json]:
    content = block.content if isinstance(block.content, str) else [_part(part) for part in block.content]
    if block.is_error:
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        content = [{"type": "text", "text": FAILED}, *parts]
    told = content if isinstance(content, str) else _plain(content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": told}


def _plain(parts: list[dict[str, Json]]) -> Json:
    """A tool's texts as one: few backends take parts there. With an image among them, they must."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _call(block: ToolUseBlock) -> dict[str, Json]:
    arguments = msgspec.json.encode(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _content(content: str | Sequence[AnyBlock]) -> Json:
    return content if isinstance(content, str) else joined([_part(block) for block in content])


def _part(block: AnyBlock) -> dict[str, Json]:
    match block:
        case TextBlock():
            return {"type": "text", "text": block.text}
        case ImageBlock():
            source = block.source
            url = _data_url(source) if isinstance(source, Base64Source) else source.url
            return {"type": "image_url", "image_url": {"url": url}}
        case DocumentBlock(source=TextSource() as source):
            return {"type": "text", "text": source.data}
        case DocumentBlock(source=Base64Source() as source):
            return {"type": "file", "file": {"filename": block.title or "document", "file_data": _data_url(source)}}
    raise AssertionError("calls and results are no content")


def _data_url(source: Base64Source) -> str:
    return f"data:{source.media_type};base64,{source.data}"


def _tool(tool: Tool) -> dict[str, Json]:
    function = given(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict)
    return {"type": "function", "function": function}


def _choice(body: CountBody) -> Json:
    match body.tool_choice:
        case ToolChoice(name=name):
            return {"type": "function", "function": {"name": name}}
        case AnyChoice():
            return "required"
        case NoChoice():
            return "none"
        case None:
            return None
    return "auto"


def _parallel(body: CountBody) -> bool | None:
    disabled = None if body.tool_choice is None else body.tool_choice.disable_parallel_tool_use
    return None if disabled is None else not disabled


def _format(schema: dict[str, Json]) -> dict[str, Json]:
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
