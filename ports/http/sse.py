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

_CURSOR: Final = re.compile(r"([a-z0-9]{1,32})\.(0|[1-9][0-9]{0,17})")


def frame(event: Event, stream_epoch: str) -> bytes:
    """`id`, `event` and one line of `data`. JSON has no raw newline, so nothing can break out of the frame."""
    data = msgspec.json.encode(event)
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
