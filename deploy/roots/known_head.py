"""A head that a connection has sent before: what the parser made of it is what it would make of it again.

Clients say the same with each request but for the length of its body. So the second one is told by its bytes, and nothing
of it is parsed; whatever differs in anything else is the parser's again.
"""

import re
from typing import Any, Final, Self

from ports.http.extensions import HeadMemory

MAX_BYTES: Final = 4 * 1024
"""Of a head that is kept, one for each connection."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)
_LONGEST: Final = 9
"""Digits of a length."""
_NAME: Final = b"content-length"
_BLANK: Final = b"\r\n\r\n"
_READ_ANEW: Final = frozenset({b"expect", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
"""A head with one of these says more than what is asked for."""


class KnownHead:
    """Of a POST whose body has a length."""

    __slots__ = ("_after", "_before", "_digits", "_head", "_length", "memory", "scope")

    def __init__(self, before: bytes, digits: bytes, after: bytes, scope: dict[str, Any]) -> None:
        """`before` and `after`: what stands around the length's digits. `scope`: as ASGI has it, without extensions."""
        self._before, self._digits, self._after = before, digits, after
        self._head = before + digits + after
        self._length = int(digits)
        self.scope = scope
        self.memory: HeadMemory = {}

    def body_of(self, data: bytes) -> bytes | None:
        """The body in `data`, where that is a whole request with this very head."""
        head = self._head
        return data[len(head) :] if len(data) == len(head) + self._length and data.startswith(head) else None

    def like(self, data: bytes) -> Self | None:
        """The head of the whole request in `data`, where it differs from this one in nothing but its length."""
        start = len(self._before)
        if not data.startswith(self._before):
            return None
        end = data.find(b"\r\n", start, start + _LONGEST + 2)
        digits = data[start:end] if end > start else b""
        if not digits.isdigit() or not data.startswith(self._after, end):
            return None
        if len(data) != end + len(self._after) + int(digits):
            return None
        headers = [(name, digits if name == _NAME else value) for name, value in self.scope["headers"]]
        found = type(self)(self._before, digits, self._after, {**self.scope, "headers": headers})
        found.memory = self.memory
        return found


def known_head(data: bytes, body_bytes: int, scope: dict[str, Any]) -> KnownHead | None:
    """The head of `data`, which the parser has read as one whole request; None where it isn't one to go by."""
    head = data[: len(data) - body_bytes]
    if len(head) > MAX_BYTES or scope["method"] != "POST":
        return None
    if head.find(_BLANK) != len(head) - len(_BLANK):
        # There was something before the request or behind it.
        return None
    names = [name for name, _ in scope["headers"]]
    if names.count(_NAME) != 1 or not _READ_ANEW.isdisjoint(names):
        return None
    place = _LENGTH.search(head)
    if place is None or int(place[1]) != body_bytes:
        return None
    return KnownHead(head[: place.start(1)], place[1], head[place.end(1) :], scope)
