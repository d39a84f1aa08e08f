"""The text as a reader sees it, with the way back to the text as it was given."""

import unicodedata
from typing import Final, NamedTuple

# Shown as nothing although not of the category for it: joiners, fillers, variation selectors.
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0") | frozenset(map(chr, range(0xFE00, 0xFE10)))
_DOTS: Final = frozenset("\u3002\uff61\u2024\u00b7")


class Canonical(NamedTuple):
    """`origin[i]` is where character i comes from; None when nothing moved."""

    text: str
    origin: list[int] | None

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` lies in the text as it was given, hidden characters in between included."""
        if self.origin is None:
            return start, end
        return self.origin[start], self.origin[end - 1] + 1


def canonical_form(text: str) -> Canonical:
    """Compatibility forms folded, every script's digits and every dash made ASCII, and what can't be seen removed.

    Character by character, so that the way back is known; what composition across characters would add concerns no
    pattern of ours.
    """
    if text.isascii():
        return Canonical(text, None)
    folded = [_fold(char) for char in text]
    return Canonical("".join(folded), [index for index, piece in enumerate(folded) for _ in piece])


def _fold(char: str) -> str:
    if char.isascii():
        return char
    if char in _DOTS:
        return "."
    match unicodedata.category(char):
        case "Cf":
            return ""
        case "Nd":
            return str(unicodedata.decimal(char))
        case "Pd":
            return "-"
        case "Zs":
            return " "
        case _:
            return "" if char in _INVISIBLE else unicodedata.normalize("NFKC", char)
