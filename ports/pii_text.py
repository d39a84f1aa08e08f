"""The text as a reader sees it, with the way back to the text as it was given. For whoever looks for patterns in it.

One place says what letters, digits and blanks may look like: detectors of personal data and the policies' keywords and
patterns read the same.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from ports.pii_escapes import DATA_SIGN, ESCAPE, Written, undone

Reading: TypeAlias = Literal["bare", "spelled", "composed"]
"""Letters without the marks on them; the same with letters that only a machine sees; letters with their marks."""
Moving: TypeAlias = tuple[int, list[str]]
"""From which character on, and what each of them becomes."""

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
_ODD: Final = re.compile(r"[^\t\n\r -~]++")
"""Whatever does not stand for itself in every reading."""


class Canonical:
    """`text`, and the way back, which is looked for only where somebody asks: mostly nothing is found."""

    __slots__ = ("_ends", "_moving", "_starts", "_written", "text")

    def __init__(self, text: str, written: Written | None = None, moving: Sequence[Moving] = ()) -> None:
        """`written`: what `text` was read from, where that is another. `moving`: what became none or several of it."""
        self.text = text
        self._written = written
        self._moving = moving
        self._starts: Sequence[int] | None = None
        self._ends: Sequence[int] | None = None

    @property
    def starts(self) -> Sequence[int] | None:
        """Character i comes from `starts[i]` on; None when nothing moved."""
        self._look()
        return self._starts

    @property
    def ends(self) -> Sequence[int] | None:
        """Character i comes from what lies before `ends[i]`; None when nothing moved."""
        self._look()
        return self._ends

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` lies in the text as it was given, hidden characters in between and marks included."""
        self._look()
        if self._starts is None or self._ends is None:
            return start, end
        return self._starts[start], self._ends[end - 1]

    def _look(self) -> None:
        if self._starts is None and self._written is not None:
            written = self._written
            self._starts, self._ends = _moved(written, self._moving) if self._moving else (written.starts, written.ends)


def canonical_form(text: str, reading: Reading = "bare", *, data: bool = True) -> Canonical:
    """Escapes undone, compatibility forms folded, every script's digits and every dash made ASCII, and what can't be
    seen removed.

    Character by character, so that the way back is known. `data`: of `data:` URLs, the text that is in them.
    """
    if text.isascii() and not _has_controls(text) and (not data or "4" not in text or DATA_SIGN not in text):
        # Nearly always. One character is searched many times as fast as two of them or a pattern.
        signs = "%" in text or "&" in text or "\\" in text
        if not signs or ESCAPE.search(text) is None:
            return Canonical(text)
    written = undone(text, data=data)
    return _folded(written, _FOLDS[reading])


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


def _folded(written: Written, fold: Callable[[str], str]) -> Canonical:
    """Stretch by stretch: what is plain stands for itself, and costs next to nothing beside what is not."""
    text, at = written.text, 0
    pieces: list[str] = []
    moving: list[Moving] = []
    for odd in _ODD.finditer(text):
        first, last = odd.span()
        folded = list(map(fold, text[first:last]))
        pieces.append(text[at:first])
        pieces += folded
        if "" in folded or len("".join(folded)) != len(folded):
            moving.append((first, folded))
        at = last
    pieces.append(text[at:])
    return Canonical("".join(pieces), written, moving)


def _moved(written: Written, moving: Sequence[Moving]) -> tuple[list[int], list[int]]:
    """Where the characters of a text come from, of which some become none or several; each where it stood, with others."""
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for first, folded in moving:
        starts += written.starts[at:first]
        ends += written.ends[at:first]
        at = first + len(folded)
        for index, piece in enumerate(folded, first):
            if piece:
                starts += [written.starts[index]] * len(piece)
                ends += [written.ends[index]] * len(piece)
            elif ends and unicodedata.category(written.text[index])[0] == "M":
                # A mark belongs to what it is on.
                ends[-1] = written.ends[index]
    starts += written.starts[at:]
    ends += written.ends[at:]
    return starts, ends


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
