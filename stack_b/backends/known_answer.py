"""How a backend's answers begin: what the parser made of one head is what it would make of it again (as ADR 0045).

The heads of a backend's whole answers differ in the length, and mostly in nothing else within a second, which is as often
as the date changes.
"""

import re
from typing import Final

from ports.http.known_length import around_length, body_at

UNUSED: Final = 15
"""So many answers are not learned of, after one whose head was never seen again: some backends say an id in each."""
_FRAMING: Final = re.compile(rb"content-length|transfer-encoding", re.IGNORECASE)
_OK: Final = b"HTTP/1.1 200 "


class KnownAnswers:
    """Of the connections to one backend: one head is kept."""

    __slots__ = ("_after", "_before", "_unlearned", "_used")

    def __init__(self) -> None:
        # What stands around the length's digits.
        self._before = self._after = b""
        self._used = False
        self._unlearned = 0

    def body_of(self, data: bytes) -> bytes | None:
        """The body in `data`, where that is a whole answer with the head that is known, but for its length."""
        begin = body_at(data, self._before, self._after) if self._before else 0
        if not begin:
            return None
        self._used = True
        return data[begin:]

    def learn(self, data: bytes, body_bytes: int) -> None:
        """`data` is what the parser has read as one whole 200, which the connection outlives, and in whose head was nothing
        that anybody keeps."""
        found = around_length(data, body_bytes)
        if found is None or not data.startswith(_OK) or len(_FRAMING.findall(found.before + found.after)) > 1:
            # Such as a stream in one read: what is known of others is known still.
            return
        if not self._used and self._unlearned:
            self._unlearned -= 1
            return
        self._used, self._unlearned = False, UNUSED
        self._before, self._after = found.before, found.after
