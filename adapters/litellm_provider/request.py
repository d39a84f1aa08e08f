"""What of a body may be passed on. Pure.

LiteLLM takes members of a request and orders of its operator as the same keyword arguments, and fetches what a message
refers to. So only what is known to be a member goes there, and nothing that would have to be fetched.
"""

from collections.abc import Iterator
from typing import Final

from ports.errors import InvalidArgument
from ports.messages import Json

CHAT_MEMBERS: Final = frozenset({
    "messages", "temperature", "top_p", "top_k", "n", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "user",
    "response_format", "seed", "tools", "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs",
    "reasoning_effort", "thinking",
})  # fmt: skip
EMBED_MEMBERS: Final = frozenset({"input", "dimensions", "user"})
# Of the gateway's own making, and the same for every backend: here they mean what is done anyhow.
_OURS: Final = frozenset({"stream", "stream_options"})
_INLINE: Final = "data:"
_CACHE_MARK: Final = "cache_control"
_TEXTS: Final = frozenset({"text", "refusal"})


def chat_members(body: dict[str, Json], *, cache_marks: bool) -> dict[str, Json]:
    """Without `cache_marks`, none may be in a message. Raises `InvalidArgument`, which names the member."""
    _refuse_others(body, CHAT_MEMBERS | _OURS)
    for message in body.get("messages") or ():
        for part in _parts(message):
            _check_part(part)
        marked = [one for one in (message, *_parts(message)) if isinstance(one, dict) and _CACHE_MARK in one]
        if marked and not cache_marks:
            raise InvalidArgument(f"messages: this model's provider takes no {_CACHE_MARK}; leave it out")
    for tool in body.get("tools") or ():
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise InvalidArgument("tools: this model's provider knows tools of the type 'function' only")
    return {name: value for name, value in body.items() if name not in _OURS and value is not None}


def embed_members(body: dict[str, Json]) -> dict[str, Json]:
    """The same of an embedding; its vectors come as numbers."""
    rest = {name: value for name, value in body.items() if name != "encoding_format"}
    _refuse_others(rest, EMBED_MEMBERS)
    return {name: value for name, value in rest.items() if value is not None}


def _refuse_others(body: dict[str, Json], known: frozenset[str]) -> None:
    for name, value in body.items():
        if name not in known and value is not None:
            raise InvalidArgument(
                f"{name}: this model's provider does not know it; leave it out", details={"param": name}
            )


def _parts(message: Json) -> Iterator[Json]:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        yield from content


def _check_part(part: Json) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS:
        return
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if isinstance(url, str) and url.startswith(_INLINE):
            return
        raise InvalidArgument("messages: this model's provider takes images as data: URLs only, none to be fetched")
    raise InvalidArgument("messages: this model's provider takes texts and images only")
