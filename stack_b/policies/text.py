"""A text as policies read it: canonical, and with the way back to the text as it was given. Pure.

Beyond `ports.pii_text`: what is composed of several characters is one (NFKC), so that no way of writing a letter hides it.
`Reading` reads a text that comes in pieces, and reads the same whatever the pieces are.
"""

import unicodedata
from collections.abc import Sequence
from typing import Final

from ports.pii_text import ESCAPE, LONGEST_ESCAPE, canonical_form

MAX_MARKS: Final = 64
"""Combining marks on one letter; Unicode's own stream-safe format has 30."""
_ESCAPES: Final = frozenset("&%\\")
_JAMO: Final = range(0x1160, 0x1200)
"""Vowels and tails, which join the syllable before them."""


def canonical_text(text: str) -> str:
    """Raises nothing: every text has one."""
    found = canonical_form(text).text
    return found if found.isascii() else unicodedata.normalize("NFKC", found)


def begins(char: str) -> bool:
    """Whether a text may be cut before `char`: it doesn't join what comes before it."""
    if char.isascii():
        return True
    folded = unicodedata.normalize("NFKC", char)
    return unicodedata.category(folded[0])[0] != "M" and ord(folded[0]) not in _JAMO


class Reading:
    """What was read of a text and not yet let go."""

    def __init__(self) -> None:
        self.text = ""
        """Canonical; its first `context` characters were let go already."""
        self.context = 0
        self._raw = ""
        """As it was given, from where `text` goes on after its context; also what is too short to be read yet."""
        self._read = 0
        """So much of `_raw` is in `text`."""
        self._starts: list[int] = []
        """By character of `text` after its context: where in `_raw` it begins."""

    def feed(self, more: str) -> None:
        self._raw += more
        self._take(len(self._raw), ends=False)

    def end(self) -> None:
        """Nothing follows: what could not be read yet can."""
        self._take(len(self._raw), ends=True)

    def release(self, upto: int) -> str:
        """The given text before character `upto` of `text`. One character stays, as the context of those behind it."""
        if upto <= self.context:
            return ""
        place = upto - self.context
        at = self._starts[place] if place < len(self._starts) else self._read
        given, self._raw = self._raw[:at], self._raw[at:]
        self._read -= at
        self._starts = [start - at for start in self._starts[place:]]
        self.text = self.text[upto - 1 :]
        self.context = 1
        return given

    def rest(self) -> str:
        """What was given and not released; nothing of it is left."""
        given, self._raw = self._raw, ""
        self.text, self.context, self._read, self._starts = self.text[-1:], min(1, len(self.text)), 0, []
        return given

    def _take(self, upto: int, *, ends: bool) -> None:
        """Read what can be read whatever follows: outside of escapes, and before a letter that has begun."""
        new = self._raw[self._read : upto]
        if not ends:
            new = new[: _outside_of_escapes(new)]
        if not new:
            return
        found = canonical_form(new)
        starts: Sequence[int] = range(len(new)) if found.starts is None else found.starts
        count = len(found.text) if ends else _letters(found.text, starts)
        if count == 0:
            return
        read = len(new) if count == len(found.text) else starts[count]
        text = found.text[:count]
        if text.isascii():
            self.text += text
            self._starts.extend(self._read + start for start in starts[:count])
        else:
            self._compose(text, starts)
        self._read += read

    def _compose(self, text: str, starts: Sequence[int]) -> None:
        """Letter by letter, each with its marks."""
        parts: list[str] = []
        at = 0
        while at < len(text):
            end = at + 1
            while end < len(text) and end - at < MAX_MARKS and not begins(text[end]):
                end += 1
            letter = unicodedata.normalize("NFKC", text[at:end])
            parts.append(letter)
            self._starts.extend([self._read + starts[at]] * len(letter))
            at = end
        self.text += "".join(parts)


def _outside_of_escapes(text: str) -> int:
    """The length of the beginning of `text` that ends in no escape, whatever follows."""
    if not any(map(text.__contains__, _ESCAPES)):
        return len(text)
    cut = len(text)
    for place in range(max(0, len(text) - LONGEST_ESCAPE), len(text)):
        if text[place] in _ESCAPES:
            cut = place
            break
    for escape in ESCAPE.finditer(text):
        if escape.start() < cut < escape.end():
            return escape.start()
    return cut


def _letters(text: str, starts: Sequence[int]) -> int:
    """How many characters of `text` belong to letters that have ended: the last one may go on."""
    last = len(text) - 1
    while last > 0 and (not begins(text[last]) or starts[last] == starts[last - 1]):
        last -= 1
    over = len(text) - last - MAX_MARKS
    if over <= 0:
        return max(last, 0)
    # More marks than any letter has: then it is cut where every reading of it is.
    cut = last + (len(text) - 1 - last) // MAX_MARKS * MAX_MARKS
    return cut if starts[cut] != starts[cut - 1] else last
