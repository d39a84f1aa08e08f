"""A text as policies read it: canonical, and with the way back to the text as it was given. Pure.

Beyond `ports.pii_text`: what is composed of several characters is one (NFKC), so that no way of writing a letter hides it.
A text is read with the marks on its letters and without them, and with letters that only a machine sees: what is denied
in one of these ways is denied. `Reading` reads a text that comes in pieces, in one of the ways, and reads the same
whatever the pieces are.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from ports.pii_escapes import LONGEST_ESCAPE, SIGNS, STRETCH
from ports.pii_text import Reading as Way
from ports.pii_text import canonical_form, hides_letters

MAX_MARKS: Final = 64
"""Combining marks on one letter; Unicode's own stream-safe format has 30."""
_IN_ESCAPES: Final = frozenset('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#;{}/"' + SIGNS)
WAYS: Final[tuple[Way, ...]] = ("bare", "spelled")
"""Beside the composed one."""
_JAMO: Final = range(0x1160, 0x1200)
"""Vowels and tails, which join the syllable before them."""


def canonical_text(text: str) -> str:
    """With its marks. Raises nothing: every text has one."""
    found = canonical_form(text, "composed").text
    return found if found.isascii() else unicodedata.normalize("NFKC", found)


def canonical_texts(text: str) -> tuple[str, ...]:
    """Each way to read it; mostly there is one."""
    found = canonical_text(text)
    if found.isascii() and not hides_letters(text):
        return (found,)
    return tuple(
        dict.fromkeys((found, *(unicodedata.normalize("NFKC", canonical_form(text, way).text) for way in WAYS)))
    )


def one_way(text: str) -> bool:
    """Whether a part of a text can be read in one way only, whatever stands around it."""
    return text.isascii() and not any(map(text.__contains__, SIGNS))


def begins(char: str) -> bool:
    """Whether a text may be cut before `char`: it doesn't join what comes before it."""
    if char.isascii():
        return True
    folded = unicodedata.normalize("NFKC", char)
    return unicodedata.category(folded[0])[0] != "M" and ord(folded[0]) not in _JAMO


class Reading:
    """What was read of a text and not yet let go."""

    def __init__(self, way: Way = "composed") -> None:
        self._way = way
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
        return self._let_go(upto, self.place(upto))

    @property
    def read(self) -> int:
        """How much of what was given and not released was read."""
        return self._read

    def place(self, upto: int) -> int:
        """Where in what was given and not released character `upto` of `text` begins."""
        if upto <= self.context:
            return 0
        place = upto - self.context
        return self._starts[place] if place < len(self._starts) else self._read

    def release_given(self, at: int) -> str:
        """The first `at` characters of what was given and not released."""
        return self._let_go(self.context + bisect_left(self._starts, at), at)

    def another(self, way: Way) -> "Reading":
        """One that has read the same so far, which could be read in one way only, and goes on in another."""
        other = Reading(way)
        other.text, other.context, other._raw, other._read = self.text, self.context, self._raw, self._read
        other._starts = list(self._starts)
        return other

    def _let_go(self, upto: int, at: int) -> str:
        given, self._raw = self._raw[:at], self._raw[at:]
        self._read -= at
        self._starts = [start - at for start in self._starts[upto - self.context :]]
        if upto > self.context:
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
        cut = True
        while cut and (new := self._raw[self._read : upto]):
            length, cut = _block(new, ends=ends)
            self._read_more(new[:length], whole=cut or ends)

    def _read_more(self, new: str, *, whole: bool) -> None:
        if not new:
            return
        found = canonical_form(new, self._way, data=False)
        starts: Sequence[int] = range(len(new)) if found.starts is None else found.starts
        count = len(found.text) if whole else _letters(found.text, starts)
        if count == 0 and not (whole and not found.text):
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


def _block(text: str, *, ends: bool) -> tuple[int, bool]:
    """How much of the beginning of `text` ends in no escape, whatever follows; and whether it is cut there in any case."""
    if not any(map(text.__contains__, SIGNS)):
        return len(text), False
    for stretch in STRETCH.finditer(text):
        end = stretch.end()
        if end < len(text) and text[end] not in _IN_ESCAPES:
            continue
        if end + LONGEST_ESCAPE <= len(text) or (ends and end < len(text)):
            return end, True
        if not ends:
            return stretch.start(), False
    return len(text), False


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
