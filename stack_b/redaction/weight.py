"""How much of a request there is to look through, so that what would take too long is refused before. Pure."""

import re
from collections.abc import Collection, Mapping
from typing import Final

from ports.errors import InvalidArgument
from ports.messages import Json
from stack_b.redaction.media import OUTERMOST, Place, is_media

LEAST: Final = 32
"""Characters that a text, a name or a number takes at least: the shortest ones take as long as so many."""
LONGEST_FOLDED: Final = 18
"""Characters that stand for one: of U+FDFA, which says four words."""
_FOLDED_LONG: Final = re.compile("[\u321d\u321e\u327c\u3300-\u3357\u33ae\u33af\ufdfa\ufdfb]")
"""Characters that stand for more than four."""


def check_weight(value: Mapping[str, Json], limit: int, texts: Collection[str] | None = None) -> int:
    """How many characters there are to look through, media among them. `texts`: of a `value` that is plain.

    Raises `InvalidArgument` (`payload_too_large`) where there are more than `limit`, media aside.
    """
    if texts is not None and (plain := weight_of_plain(value, texts)) <= limit:
        return plain
    # Media are of no weight. Only what seems too heavy is looked at for them.
    weight = _weight(value)
    if weight > limit and (found := _weight(value, media=False)) > limit:
        raise InvalidArgument(
            f"the request has about {found} characters to look through and at most {limit} are taken, images, sound and "
            "documents aside; send less of them at a time",
            code="payload_too_large",
            details={"inspected_chars": limit},
        )
    return weight


def weigh(value: Json) -> int:
    """In characters, media among them."""
    return _weight(value)


def weight_of_plain(value: Mapping[str, Json], texts: Collection[str]) -> int:
    """The same as `_weight`: members are a name and a setting, messages two names, a role and a text."""
    weight = LEAST * (2 * len(value) - 1 + 3 * len(texts))
    for text in texts:
        said = len(text) if text.isascii() else _of(text)
        weight += said if said > LEAST else LEAST
    return weight


def _weight(value: Json, place: Place = OUTERMOST, *, media: bool = True) -> int:
    """In characters. `media`: those count as well."""
    if isinstance(value, str):
        return 0 if not media and is_media(value, place) else _of(value)
    if isinstance(value, dict):
        return sum(_of(name) + _weight(member, (*place, name), media=media) for name, member in value.items())
    if isinstance(value, list):
        return sum(_weight(item, place, media=media) for item in value)
    return LEAST


def _of(text: str) -> int:
    more = 0 if text.isascii() else (LONGEST_FOLDED - 1) * len(_FOLDED_LONG.findall(text))
    return max(LEAST, len(text) + more)
