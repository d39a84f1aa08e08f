"""Server-sent events: framing and cursors."""

import re
from typing import Final

import msgspec

from ports.errors import InvalidArgument
from ports.event import Event

KEEP_ALIVE: Final = b": keep-alive\n\n"
LAGGED: Final = b": lagged\n\n"
HANG_UP: Final = "agentos.hang_up"
"""ASGI extension of our server: `hang_up(last)` ends a stream with `last` at once, whether the client reads or not."""

_LINE_ENDS: Final = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
"""What ends no line here, and does for clients that read a stream as text, line by line. JSON has no others raw."""
_CURSOR: Final = re.compile(r"([a-z0-9]{1,32})\.(0|[1-9][0-9]{0,17})")


def one_line(frames: bytes) -> bytes:
    """Frames whose data is JSON, with what could be taken for the end of a line escaped."""
    if frames.isascii():
        return frames
    for raw, escaped in _LINE_ENDS:
        if raw in frames:
            frames = frames.replace(raw, escaped)
    return frames


def frame(event: Event, stream_epoch: str) -> bytes:
    """`id`, `event` and one line of `data`: nothing can break out of the frame."""
    data = one_line(msgspec.json.encode(event))
    return b"id: %s.%d\nevent: %s\ndata: %s\n\n" % (stream_epoch.encode(), event.sequence, event.type.encode(), data)


def parse_cursor(text: str, stream_epoch: str) -> int:
    """The sequence in a `Last-Event-ID` or `?after=`.

    Raises:
        InvalidArgument: malformed, or of another stream epoch (the history it points into is gone: read from the start).
    """
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidArgument("the event id is malformed; send one exactly as it was received")
    if match[1] != stream_epoch:
        raise InvalidArgument("the event id is of another stream; read again from the start, without Last-Event-ID")
    return int(match[2])
