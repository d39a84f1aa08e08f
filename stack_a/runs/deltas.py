"""A model's reply while it grows: its text is told in `model.delta` events before the whole is there.

Text gathers until the journal is told, or until it fills an event; what is left at the end goes into the commit of the
completion. The deltas of one attempt, joined, are the beginning of its text, and nearly always all of it:
`model.completed` has the whole. A later attempt of the same step has a higher number, and begins again.
"""

from typing import Final

import anyio

from ports.run_state import NewEvent

PIECE_BYTES: Final = 4 * 1024
"""Of text in one event, in UTF-8."""
MAX_TOLD_BYTES: Final = 256 * 1024
"""Of text told by the deltas of one attempt. A reader of more than that waits for `model.completed`."""


class Deltas:
    """The text of one model step that is still to be told."""

    def __init__(self, n: int, *, attempts_before: int) -> None:
        self._n = n
        self._attempt = attempts_before
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._told_bytes = 0
        self._full = False
        self.due = anyio.Event()
        """Set when what waits fills an event; a new one after `take`."""

    def begin(self) -> None:
        """Another attempt, from its first word. What waits of the one before is not told any more."""
        self._attempt += 1
        self._waiting, self._waiting_bytes = [], 0
        self._told_bytes = 0
        self._full = False

    def add(self, text: str) -> None:
        if self._full or not text:
            return
        self._waiting.append(text)
        self._waiting_bytes += size_of(text)
        if self._waiting_bytes >= PIECE_BYTES:
            self.due.set()

    def take(self) -> list[NewEvent]:
        """What waits, as events."""
        self.due = anyio.Event()
        text = "".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        told: list[NewEvent] = []
        for piece in pieces(text):
            self._told_bytes += size_of(piece)
            if self._told_bytes > MAX_TOLD_BYTES:
                # With a gap inside, what follows would mislead.
                self._full = True
                break
            told.append(NewEvent(type="model.delta", data={"step": self._n, "attempt": self._attempt, "text": piece}))
        return told


def pieces(text: str) -> list[str]:
    """`text` in parts of at most `PIECE_BYTES`, none of which splits a character."""
    raw = text.encode("utf-8", "surrogatepass")
    found: list[str] = []
    start = 0
    while start < len(raw):
        end = min(start + PIECE_BYTES, len(raw))
        # Bytes 10xxxxxx continue a character.
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # noqa: PLR2004 - UTF-8's own bits
            end -= 1
        found.append(raw[start:end].decode("utf-8", "surrogatepass"))
        start = end
    return found


def size_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
