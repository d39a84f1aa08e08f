"""The text as a reader sees it, with the way back to the text as it was given. For whoever looks for patterns in it.

One place says what letters, digits and blanks may look like: detectors of personal data and the policies' keywords and
patterns read the same.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from ports.pii_escapes import DATA_SIGN, ESCAPE, undone

Reading: TypeAlias = Literal["bare", "spelled", "composed"]
"""Letters without the marks on them; the same with letters that only a machine sees; letters with their marks."""

_MAX_KNOWN: Final = 8_192
"""Characters whose folding is remembered."""

# Shown as nothing although not of the category for it: joiners, fillers, and what Unicode keeps free for such.
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000)))
)
_BLANKS: Final = frozenset("\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029\u2800")
"""Ends of lines and of pages for some readers; a detector cuts at none of them, so they are read as blanks."""
_KEPT: Final = frozenset("\t\n\r")
_DOTS: Final = frozenset("\u3002\uff61\u2024\u00b7\u2022\u2027\u2219\u22c5\u30fb")
_DASHES: Final = frozenset("\u2212\u02d7\u2043\u2796\u23af\u2500\u2501\u00af")
# Letters in black circles and squares, which have no compatibility form. 26 of each.
_BLACK_LETTERS: Final = (0x1F150, 0x1F170)
_SIGNS: Final[Mapping[str, str]] = {
    **dict.fromkeys(_INVISIBLE, ""),
    **dict.fromkeys(_BLANKS, " "),
    **dict.fromkeys(_DOTS, "."),
    **dict.fromkeys(_DASHES, "-"),
    **{chr(first + at): chr(ord("A") + at) for first in _BLACK_LETTERS for at in range(26)},
}
_OF_CATEGORY: Final[Mapping[str, str]] = {"Cf": "", "Cc": "", "Pd": "-", "Zs": " ", "Zl": " ", "Zp": " "}
# Of two blocks that show nothing: characters of ASCII, one by one, and variation selectors, which stand for bytes.
_TAGS: Final = range(0xE0020, 0xE007F)
_SELECTORS: Final = range(0xE0110, 0xE016F)
_HIDDEN: Final = re.compile(f"[{chr(_TAGS[0])}-{chr(_TAGS[-1])}{chr(_SELECTORS[0])}-{chr(_SELECTORS[-1])}]")

_CONTROLS: Final = bytes({*range(0x20), 0x7F} - set(map(ord, _KEPT)))


class Canonical(NamedTuple):
    """Character i comes from `starts[i]` up to `ends[i]` of the text as it was given; None when nothing moved."""

    text: str
    starts: list[int] | None
    ends: list[int] | None

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` lies in the text as it was given, hidden characters in between and marks included."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[end - 1]


def canonical_form(text: str, reading: Reading = "bare", *, data: bool = True) -> Canonical:
    """Escapes undone, compatibility forms folded, every script's digits and every dash made ASCII, and what can't be
    seen removed.

    Character by character, so that the way back is known. `data`: of `data:` URLs, the text that is in them.
    """
    if text.isascii() and not _has_controls(text) and (not data or "4" not in text or DATA_SIGN not in text):
        # Nearly always. One character is searched many times as fast as two of them or a pattern.
        signs = "%" in text or "&" in text or "\\" in text
        if not signs or ESCAPE.search(text) is None:
            return Canonical(text, None, None)
    written = undone(text, data=data)
    starts, ends = list(written.starts), list(written.ends)
    if written.text.isascii() and not _has_controls(written.text):
        return Canonical(written.text, starts, ends)
    folded = list(map(_FOLDS[reading], written.text))
    if any(len(piece) != 1 for piece in folded):
        starts, ends = _moved(written.text, folded, starts, ends)
    return Canonical("".join(folded), starts, ends)


def readings(text: str) -> Iterator[Canonical]:
    """Each way to read `text` in which something may be found; mostly there is one."""
    yield canonical_form(text)
    if hides_letters(text):
        yield canonical_form(text, "spelled")


def hides_letters(text: str) -> bool:
    """Whether there are letters in it that only a machine sees."""
    return not text.isascii() and _HIDDEN.search(text) is not None


def _has_controls(text: str) -> bool:
    """Of a text of ASCII."""
    return len(text.encode().translate(None, _CONTROLS)) != len(text)


def _moved(text: str, folded: list[str], starts: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
    moved_starts: list[int] = []
    moved_ends: list[int] = []
    for index, piece in enumerate(folded):
        if piece:
            moved_starts += [starts[index]] * len(piece)
            moved_ends += [ends[index]] * len(piece)
        elif moved_ends and unicodedata.category(text[index])[0] == "M":
            # A mark belongs to what it is on.
            moved_ends[-1] = ends[index]
    return moved_starts, moved_ends


@lru_cache(_MAX_KNOWN)
def _composed(char: str) -> str:
    if char in _KEPT or (char.isascii() and char.isprintable()):
        return char
    known = _SIGNS.get(char)
    if known is None:
        known = _OF_CATEGORY.get(unicodedata.category(char))
    if known is not None:
        return known
    digit = unicodedata.digit(char, None)
    return unicodedata.normalize("NFKC", char) if digit is None else str(digit)


@lru_cache(_MAX_KNOWN)
def _bare(char: str) -> str:
    composed = _composed(char)
    if composed.isascii():
        return composed
    letters = unicodedata.normalize("NFKD", composed)
    without = "".join(letter for letter in letters if unicodedata.category(letter)[0] != "M")
    return composed if without == letters else without


@lru_cache(_MAX_KNOWN)
def _spelled(char: str) -> str:
    code = ord(char)
    if code in _TAGS:
        return chr(code - 0xE0000)
    if code in _SELECTORS:
        return chr(code - 0xE0100 + 16)
    return _bare(char)


_FOLDS: Final[Mapping[Reading, Callable[[str], str]]] = {"bare": _bare, "spelled": _spelled, "composed": _composed}
