"""Replacing spans of a text, and of every text in a JSON value. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ports.messages import Json
from ports.pii import Span
from stack_b.redaction.media import OUTERMOST, Place, is_media
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

LONG_NUMBER: Final = 10**8
_EXACT: Final = 10**20
"""A float that is whole, and smaller, is written with all its digits."""
_SETTINGS: Final = frozenset({"seed"})
"""Outermost members that are large numbers and nobody's."""


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


class Texts:
    """What is to be looked at in a value."""

    def __init__(self, value: Json) -> None:
        self.found: list[str] = []
        """Every string that a backend would see and that may hold something to find, member names included."""
        self.numbers: list[str] = []
        """Those that are long enough to be an account's, in digits."""
        self.parted: list[list[Json]] = []
        """The lists that hold a text in parts."""
        _gather(value, self, OUTERMOST)


def texts(value: Json) -> list[str]:
    """Strings, and numbers."""
    looked_at = Texts(value)
    return looked_at.found + looked_at.numbers


def _gather(value: Json, to: Texts, place: Place) -> None:
    if isinstance(value, str):
        if is_looked_at(value) and not is_media(value, place):
            to.found.append(value)
    elif isinstance(value, dict):
        if not value.keys() <= _NAMES:
            to.found += filter(is_looked_at, value)
        for name, member in value.items():
            _gather(member, to, (*place, name))
    elif isinstance(value, list):
        if len(value) > 1 and texts_of(value):
            to.parted.append(value)
        for item in value:
            _gather(item, to, place)
    elif (number := number_of(value)) is not None and not _is_setting(place):
        to.numbers.append(number)


def is_looked_at(text: str) -> bool:
    """Whether it may hold something to find."""
    return len(text) >= SHORTEST and text not in PROTOCOL


def rewritten(
    value: Json,
    replacements: Mapping[str, str],
    numbers: Mapping[str, str] | None = None,
    place: Place = OUTERMOST,
) -> Json:
    """`value` with the strings of `replacements` replaced, member names included; and the numbers of `numbers`, or of
    `replacements` too."""
    if isinstance(value, str):
        return replacements.get(value, value)
    if isinstance(value, list):
        return [rewritten(item, replacements, numbers, place) for item in value]
    if isinstance(value, dict):
        members: dict[str, Json] = {}
        last: dict[str, int] = {}
        for name, member in value.items():
            shown = rewritten(member, replacements, numbers, (*place, name))
            members[free_name(replacements.get(name, name), members, last)] = shown
        return members
    if (number := number_of(value)) is not None and not _is_setting(place):
        return (replacements if numbers is None else numbers).get(number, value)
    return value


def number_of(value: Json) -> str | None:
    """A number as its digits, where it may be an account's; None for any other value, and for small ones."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) < LONG_NUMBER:
        return None
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)


def _is_setting(place: Place) -> bool:
    return len(place) == 1 and place[0] in _SETTINGS


def free_name(name: str, taken: Mapping[str, Json], last: dict[str, int]) -> str:
    """`name`, numbered if two members became the same placeholder: none of them may get lost.

    `last`: by name, the number that was given last, so that no number is tried twice.
    """
    if name not in taken:
        return name
    number = last.get(name, 1) + 1
    while (candidate := f"{name}_{number}") in taken:
        number += 1
    last[name] = number
    return candidate
