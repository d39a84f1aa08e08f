"""From what a backend reports, or doesn't, to what is settled. Pure; integers only."""

from typing import Final

from msgspec import Struct

from ports.messages import Json, Usage
from stack_b.backends.protocol import Price
from stack_b.budget.estimate import estimated_tokens


class Kinds(Struct, frozen=True, kw_only=True):
    """Which parts of the prompt and the completion were of a kind of their own."""

    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0


NO_KINDS: Final = Kinds()


def kinds_of(reported: dict[str, Json] | None) -> Kinds:
    """What the backend says of its kinds, as far as it can be: parts of a whole, and no part counted twice."""
    told = reported
    if not told or (not told.get("prompt_tokens_details") and not told.get("completion_tokens_details")):
        return NO_KINDS
    prompt, completion = told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0
    details = _members(told.get("prompt_tokens_details"))
    read = _part(details.get("cached_tokens"), prompt)
    written = _part(details.get("cache_creation_tokens", details.get("cache_write_tokens")), prompt - read)
    reasoning = _part(_members(told.get("completion_tokens_details")).get("reasoning_tokens"), completion)
    return Kinds(cache_read=read, cache_write=written, reasoning=reasoning)


def _members(value: Json) -> dict[str, Json]:
    """What is there where a backend says its details; whatever else it may be says nothing."""
    return value if isinstance(value, dict) else {}


def _part(count: Json, whole: int) -> int:
    return max(0, min(count, whole)) if isinstance(count, int) else 0


def usage_of(reported: dict[str, Json] | None, *, prompt_bytes: int, content_bytes: int, price: Price | None) -> Usage:
    """The backend's own count; what it left out is estimated from the bytes that went there and came back.

    Zero and missing are different: a reported zero is a count.
    """
    told = reported or {}
    prompt, completion = told.get("prompt_tokens"), told.get("completion_tokens")
    estimated = prompt is None or (completion is None and content_bytes > 0)
    prompt = estimated_tokens(prompt_bytes) if prompt is None else prompt
    completion = estimated_tokens(content_bytes) if completion is None else completion
    cost = 0
    if price is not None:
        kinds = kinds_of(reported)
        parts = {"cache_read": kinds.cache_read, "cache_write": kinds.cache_write, "reasoning": kinds.reasoning}
        cost = price.cost_nanousd(prompt, completion, **parts)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cost_nanousd=cost, estimated=estimated)


def content_bytes_of(answer: dict[str, Json]) -> int:
    """The size of everything the backend wrote in a whole answer."""
    return sum(size_of(choice["message"]) for choice in answer["choices"])


def size_of(message: dict[str, Json]) -> int:
    """In bytes, of what a backend wrote as a message or a part of one, wherever in it. Of sound it is what is said."""
    size = 0
    for name, value in message.items():
        if name == "tool_calls":
            for call in value or ():
                size += _texts_of(call.get("function")) + _texts_of(call.get("custom"))
        elif name == "audio" and isinstance(value, dict):
            size += _texts_of(value.get("transcript"))
        elif name != "role":
            size += _texts_of(value)
    return size


def _texts_of(value: Json) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(map(_texts_of, value.values()))
    if isinstance(value, list):
        return sum(map(_texts_of, value))
    return 0
