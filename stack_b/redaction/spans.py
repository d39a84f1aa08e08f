"""Replacing spans of a text, and of every text in a JSON value. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ports.messages import Json
from ports.pii import Span
from stack_b.redaction.parts import texts_of

SHORTEST: Final = 5
"""Nothing that counts as personal data is shorter (`a@b.c`)."""

PROTOCOL: Final = frozenset(
    {
        "assistant", "content", "description", "developer", "enum", "function", "messages", "metadata", "model", "number",
        "object", "parameters", "properties", "required", "response_format", "string", "strict", "system", "temperature",
        "tool_call_id", "tool_calls", "tool_choice", "tools", "top_p",
    }
)  # fmt: skip
"""Words of the dialect itself. Nobody's data, and nothing but these exact words is spared a look."""

_NAMES: Final = PROTOCOL | {"id", "n", "name", "role", "seed", "stop", "text", "type", "user"}
"""With names that are too short to be anything."""

_LONG_NUMBER: Final = 10**8

# Media travel as base64, and a detector that took a stretch of it for a card number would destroy the image. Card numbers,
# IBANs and keys are in that alphabet too: it is spared a look only in the places of media, where nobody reads it as a text.
_MEDIA: Final = re.compile(r"(?:data:[\w.+/-]{1,100};base64,)?[A-Za-z0-9+/]{256,}={0,2}")
_SHORTEST_MEDIA: Final = 255


MEDIA_PLACES: Final = frozenset(
    {
        ("audio", "data"), ("audio_url", "url"), ("file", "file_data"), ("image_url", "url"), ("input_audio", "data"),
        ("source", "data"), ("video_url", "url"),
    }
)  # fmt: skip
"""Of a member: the name of the object it is in, and its own."""
OUTERMOST: Final = ("", "")


def placeholder(kind: str) -> str:
    return f"[{kind.upper()}]"


def typed(kind: str, _value: str) -> str:
    return placeholder(kind)


def replaced(text: str, spans: Sequence[Span], stand_in: Callable[[str, str], str] = typed) -> str:
    """`text` with what `stand_in` gives for each span's kind and text. Spans are in order and do not overlap."""
    parts: list[str] = []
    end = 0
    for span in spans:
        parts += (text[end : span.start], stand_in(span.kind, text[span.start : span.end]))
        end = span.end
    return "".join((*parts, text[end:]))


def texts(value: Json, parted: list[list[Json]] | None = None) -> list[str]:
    """Every string that a backend would see and that may hold something to find, member names included.

    Numbers as well, if they are long enough to be an account's; but not those of the outermost members, which are
    settings such as `seed`. `parted` is given the lists that hold a text in parts.
    """
    found: list[str] = []
    _gather(value, found, [] if parted is None else parted, OUTERMOST, depth=0)
    return found


def _gather(value: Json, found: list[str], parted: list[list[Json]], place: tuple[str, str], *, depth: int) -> None:
    if isinstance(value, str):
        if _counts(value) and not is_media(value, place):
            found.append(value)
    elif isinstance(value, dict):
        if not value.keys() <= _NAMES:
            found += filter(_counts, value)
        inside = place[1]
        for name, member in value.items():
            _gather(member, found, parted, (inside, name), depth=depth + 1)
    elif isinstance(value, list):
        if len(value) > 1 and texts_of(value):
            parted.append(value)
        for item in value:
            _gather(item, found, parted, place, depth=depth + 1)
    elif depth > 1 and _is_long(value):
        found.append(str(value))


def _counts(text: str) -> bool:
    return len(text) >= SHORTEST and text not in PROTOCOL


def rewritten(value: Json, replacements: Mapping[str, str], *, depth: int = 0) -> Json:
    """`value` with the strings of `replacements` replaced, member names included."""
    if isinstance(value, str):
        return replacements.get(value, value)
    if isinstance(value, list):
        return [rewritten(item, replacements, depth=depth + 1) for item in value]
    if isinstance(value, dict):
        members: dict[str, Json] = {}
        for name, member in value.items():
            members[_free(replacements.get(name, name), members)] = rewritten(member, replacements, depth=depth + 1)
        return members
    if depth > 1 and _is_long(value):
        return replacements.get(str(value), value)
    return value


def is_media(text: str, place: tuple[str, str]) -> bool:
    """Whether it is bytes and no text, by what it looks like and by where it stands."""
    return len(text) > _SHORTEST_MEDIA and place in MEDIA_PLACES and _MEDIA.fullmatch(text) is not None


def _is_long(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _LONG_NUMBER


def _free(name: str, taken: Mapping[str, Json]) -> str:
    """`name`, numbered if two members became the same placeholder: none of them may get lost."""
    number, candidate = 2, name
    while candidate in taken:
        candidate = f"{name}_{number}"
        number += 1
    return candidate
