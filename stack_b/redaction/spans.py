"""Replacing spans of a text, and of every text in a JSON value. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ports.messages import Json
from ports.pii import Span

SHORTEST: Final = 5
"""Nothing that counts as personal data is shorter (`a@b.c`)."""

# Media travel as base64. Its alphabet has no '@', '.', '-' or space, so no text hides in it, and a detector that took
# a stretch of it for a card number would destroy the image.
_MEDIA: Final = re.compile(r"(?:data:[\w.+/-]{1,100};base64,)?[A-Za-z0-9+/]{256,}={0,2}")


def placeholder(kind: str) -> str:
    return f"[{kind.upper()}]"


def replaced(text: str, spans: Sequence[Span]) -> str:
    """`text` with a typed placeholder for each span. Spans are in order and do not overlap."""
    parts: list[str] = []
    end = 0
    for span in spans:
        parts += (text[end : span.start], placeholder(span.kind))
        end = span.end
    return "".join((*parts, text[end:]))


def texts(value: Json) -> Iterator[str]:
    """Every string that a backend would see and that may hold something to find, member names included."""
    if isinstance(value, str):
        if len(value) >= SHORTEST and not _MEDIA.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from texts(name)
            yield from texts(member)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def rewritten(value: Json, replacements: Mapping[str, str]) -> Json:
    """`value` with the strings of `replacements` replaced, member names included."""
    if isinstance(value, str):
        return replacements.get(value, value)
    if isinstance(value, list):
        return [rewritten(item, replacements) for item in value]
    if isinstance(value, dict):
        members: dict[str, Json] = {}
        for name, member in value.items():
            members[_free(replacements.get(name, name), members)] = rewritten(member, replacements)
        return members
    return value


def _free(name: str, taken: Mapping[str, Json]) -> str:
    """`name`, numbered if two members became the same placeholder: none of them may get lost."""
    number, candidate = 2, name
    while candidate in taken:
        candidate = f"{name}_{number}"
        number += 1
    return candidate
