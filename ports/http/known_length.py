"""Messages of HTTP/1.1 that begin as one before them, but for the digits of their length: told by their bytes, not parsed.

For requests of a connection (ADR 0045) and for the answers of a backend (ADR 0062).
"""

import re
from typing import Final, NamedTuple

MAX_BYTES: Final = 4 * 1024
"""Of a head that is kept."""
_LONGEST: Final = 9
"""Digits of a length."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,%d})\r\n" % _LONGEST, re.IGNORECASE)
_BLANK: Final = b"\r\n\r\n"


class Around(NamedTuple):
    """A head, cut where the digits of its length are."""

    before: bytes
    digits: bytes
    after: bytes


def around_length(data: bytes, body_bytes: int) -> Around | None:
    """The head of `data`, which the parser has read as one whole message with so long a body; None where it isn't one to go
    by: too long, with something before the message or behind it, or without that length."""
    if body_bytes >= len(data):
        return None
    head = data[: len(data) - body_bytes]
    if len(head) > MAX_BYTES or head.find(_BLANK) != len(head) - len(_BLANK):
        return None
    place = _LENGTH.search(head)
    if place is None or int(place[1]) != body_bytes:
        return None
    return Around(head[: place.start(1)], place[1], head[place.end(1) :])


def body_at(data: bytes, before: bytes, after: bytes) -> int:
    """Where the body begins in `data`, if that is one whole message whose head has `before` and `after` around the digits
    of its length; else 0."""
    if not data.startswith(before):
        return 0
    start = len(before)
    end = data.find(b"\r\n", start, start + _LONGEST + 2)
    digits = data[start:end] if end > start else b""
    if not digits.isdigit() or not data.startswith(after, end):
        return 0
    begin = end + len(after)
    return begin if len(data) - begin == int(digits) else 0
