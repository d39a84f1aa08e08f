"""How a backend's answers begin: what the parser made of one head is what it would make of it again (as ADR 0045).

The heads of a backend's whole answers differ in the length, and mostly in nothing else within a second, which is as often
as the date changes.
"""

import re
from typing import Final

MAX_BYTES: Final = 4 * 1024
"""Of a head that is kept, one for each backend."""
UNUSED: Final = 15
"""So many answers are not learned of, after one whose head was never seen again: some backends say an id in each."""
_FRAMING: Final = re.compile(rb"content-length|transfer-encoding", re.IGNORECASE)
_LONGEST: Final = 9
"""Digits of a length."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,%d})\r\n" % _LONGEST, re.IGNORECASE)
_OK: Final = b"HTTP/1.1 200 "
_BLANK: Final = b"\r\n\r\n"


class KnownAnswers:
    """Of the connections to one backend."""

    __slots__ = ("_after", "_before", "_unlearned", "_used")

    def __init__(self) -> None:
        # What stands around the length's digits.
        self._before = self._after = b""
        self._used = False
        self._unlearned = 0

    def body_of(self, data: bytes) -> bytes | None:
        """The body in `data`, where that is a whole answer with the head that is known, but for its length."""
        before, after = self._before, self._after
        if not before or not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r\n", start, start + _LONGEST + 2)
        digits = data[start:end] if end > start else b""
        if not digits.isdigit() or not data.startswith(after, end):
            return None
        begin = end + len(after)
        if len(data) - begin != int(digits):
            return None
        self._used = True
        return data[begin:]

    def learn(self, data: bytes, body_bytes: int) -> None:
        """`data` is what the parser has read as one whole 200, which the connection outlives, and in whose head was nothing
        that anybody keeps."""
        if body_bytes >= len(data) or not data.startswith(_OK):
            return
        head = data[: len(data) - body_bytes]
        place = _LENGTH.search(head)
        if (
            place is None
            or len(_FRAMING.findall(head)) > 1
            or len(head) > MAX_BYTES
            # There was something before the answer or behind it.
            or head.find(_BLANK) != len(head) - len(_BLANK)
        ):
            # Such as a stream in one read: what is known of others is known still.
            return
        if not self._used and self._unlearned:
            self._unlearned -= 1
            return
        self._used, self._unlearned = False, UNUSED
        self._before, self._after = head[: place.start(1)], head[place.end(1) :]
