"""Server-sent events in arbitrary pieces of bytes → the data of each event. Pure, and bounded. For clients of a stream."""

from typing import Final

from ports.errors import Unavailable

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024


class SseDecoder:
    """`feed` gives the `data` of every event completed by these bytes; fields other than `data` are ignored."""

    def __init__(self) -> None:
        # What is kept grows in place: a line that comes in many pieces must not be copied with each of them.
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0

    @property
    def between_events(self) -> bool:
        """Whether nothing of an event has come yet that isn't complete."""
        return not self._rest and not self._data

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises `Unavailable` (`upstream_error`) when one event grows beyond the limit."""
        events: list[bytes] = []
        if b"\n" not in piece:
            self._rest += piece
        else:
            *lines, rest = (bytes(self._rest) + piece).split(b"\n")
            self._rest = bytearray(rest)
            for raw in lines:
                line = raw[:-1] if raw.endswith(b"\r") else raw
                if line.startswith(b"data:"):
                    self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                    self._data_bytes += len(line)
                elif not line and self._data:
                    events.append(b"\n".join(self._data))
                    self._data, self._data_bytes = [], 0
        if len(self._rest) + self._data_bytes > MAX_EVENT_BYTES:
            raise Unavailable("the other side sent an event that is too large", code="upstream_error")
        return events

    def close(self) -> list[bytes]:
        """What was left when the stream ended: some servers forget the last blank line."""
        return self.feed(b"\n\n") if self._rest or self._data else []
