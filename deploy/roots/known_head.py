"""A head that a connection has sent before: what the parser made of it is what it would make of it again.

Clients say the same with each request but for the length of its body. So the second one is told by its bytes, and nothing
of it is parsed; whatever differs in anything else is the parser's again.
"""

from typing import Any, Final, Self

from ports.http.extensions import HeadMemory
from ports.http.known_length import Around, around_length, body_at

_NAME: Final = b"content-length"
_READ_ANEW: Final = frozenset({b"expect", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
"""A head with one of these says more than what is asked for."""


class KnownHead:
    """Of a POST whose body has a length."""

    __slots__ = ("_after", "_before", "_head", "_length", "memory", "scope")

    def __init__(self, around: Around, scope: dict[str, Any]) -> None:
        """`scope`: as ASGI has it, without extensions."""
        self._before, digits, self._after = around
        self._head = b"".join(around)
        self._length = int(digits)
        self.scope = scope
        self.memory: HeadMemory = {}

    def body_of(self, data: bytes) -> bytes | None:
        """The body in `data`, where that is a whole request with this very head."""
        head = self._head
        return data[len(head) :] if len(data) == len(head) + self._length and data.startswith(head) else None

    def like(self, data: bytes) -> Self | None:
        """The head of the whole request in `data`, where it differs from this one in nothing but its length."""
        begin = body_at(data, self._before, self._after)
        if not begin:
            return None
        digits = data[len(self._before) : begin - len(self._after)]
        headers = [(name, digits if name == _NAME else value) for name, value in self.scope["headers"]]
        found = type(self)(Around(self._before, digits, self._after), {**self.scope, "headers": headers})
        found.memory = self.memory
        return found


def known_head(data: bytes, body_bytes: int, scope: dict[str, Any]) -> KnownHead | None:
    """The head of `data`, which the parser has read as one whole request; None where it isn't one to go by."""
    names = [name for name, _ in scope["headers"]]
    if scope["method"] != "POST" or names.count(_NAME) != 1 or not _READ_ANEW.isdisjoint(names):
        return None
    around = around_length(data, body_bytes)
    return None if around is None else KnownHead(around, scope)
