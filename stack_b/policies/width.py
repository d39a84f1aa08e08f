"""How long a match of a pattern can be. Pure.

A stream is decided on while it comes, so what is held back of it must be bounded, and with it what is looked for. What is
not understood here is refused: that is the safe side.
"""

import re
from typing import Final

from ports.errors import InvalidArgument

MAX_WIDTH: Final = 512
"""Characters of a text that a rule on answers may have to see at once, and that are held back of a stream."""
_ENDLESS: Final = 10**9

_COUNT: Final = re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}")
_GROUP: Final = re.compile(r"\?(?:P?<[A-Za-z_]\w{0,63}>|[ims-]{0,6}:)")
_FLAGS: Final = re.compile(r"\?[ims-]{1,6}\)")
_POSIX: Final = re.compile(r"\[:\^?[a-z]{1,10}:\]")
_ESCAPE: Final = re.compile(
    r"\\(?:[pP](?:\{\^?\w{1,40}\}|[A-Z])|x\{[0-9A-Fa-f]{1,6}\}|x[0-9A-Fa-f]{2}|[0-7]{1,3}|[^QEC])"
)
_EMPTY_ESCAPES: Final = frozenset({r"\b", r"\B", r"\A", r"\z"})


def width(pattern: str) -> int:
    """The most characters that a match of `pattern`, which RE2 takes, can have.

    Raises:
        InvalidArgument: it has no such bound, or it is written in a way that isn't read here.
    """
    reader = _Reader(pattern)
    found = reader.alternatives()
    if not reader.done:
        raise InvalidArgument(f"what stands at character {reader.at} isn't understood")
    if found > MAX_WIDTH:
        bound = "without an end" if found >= _ENDLESS else f"of {found} characters"
        raise InvalidArgument(
            f"it can find something {bound}, and of an answer at most {MAX_WIDTH} characters are looked at together: "
            "instead of * and + say how often at most, as in {0,40}"
        )
    return found


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.at = 0

    @property
    def done(self) -> bool:
        return self.at >= len(self._pattern)

    def alternatives(self) -> int:
        longest = self._sequence()
        while self._takes("|"):
            longest = max(longest, self._sequence())
        return longest

    def _sequence(self) -> int:
        total = 0
        while not self.done and self._pattern[self.at] not in "|)":
            total = min(_ENDLESS, total + self._repeated(self._atom()))
        return total

    def _repeated(self, one: int) -> int:
        while not self.done:
            if self._pattern[self.at] in "*+":
                self.at += 1
                # Nothing, however often, stays nothing.
                one = _ENDLESS if one else 0
            elif self._pattern[self.at] == "?":
                self.at += 1
            elif (count := _COUNT.match(self._pattern, self.at)) is not None:
                self.at = count.end()
                most = count[1] if count[2] is None else count[3]
                one = min(_ENDLESS, one * int(most)) if most else (_ENDLESS if one else 0)
            else:
                break
        return one

    def _atom(self) -> int:
        char = self._pattern[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == "\\":
            found = _ESCAPE.match(self._pattern, self.at)
            if found is None:
                raise InvalidArgument(f"the escape at character {self.at} isn't understood")
            self.at = found.end()
            return 0 if found[0] in _EMPTY_ESCAPES else 1
        self.at += 1
        return 0 if char in "^$" else 1

    def _group(self) -> int:
        self.at += 1
        if (flags := _FLAGS.match(self._pattern, self.at)) is not None:
            self.at = flags.end()
            return 0
        if not self.done and self._pattern[self.at] == "?":
            opening = _GROUP.match(self._pattern, self.at)
            if opening is None:
                raise InvalidArgument(f"the group at character {self.at} isn't understood")
            self.at = opening.end()
        found = self.alternatives()
        if not self._takes(")"):
            raise InvalidArgument("a group has no end")
        return found

    def _class(self) -> int:
        self.at += 1
        self._takes("^")
        # First, a bracket is a character like any other.
        self._takes("]")
        while not self._takes("]"):
            if self.done:
                raise InvalidArgument("a set of characters has no end")
            inner = _POSIX.match(self._pattern, self.at) or _ESCAPE.match(self._pattern, self.at)
            self.at = self.at + 1 if inner is None else inner.end()
        return 1

    def _takes(self, char: str) -> bool:
        if self._pattern[self.at : self.at + 1] == char:
            self.at += 1
            return True
        return False
