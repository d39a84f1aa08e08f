"""ASGI extensions of ours, in a scope's `extensions` where the server has them. Without them the same takes more work."""

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

ON_DISCONNECT: Final = "agentos.on_disconnect"
"""Takes what is called when the connection ends while the request is at work; afterwards it may be called too, or not at
all. Instead of a task with each request that waits for it."""

OnDisconnect: TypeAlias = Callable[[Callable[[], None]], None]

WHOLE_REQUEST: Final = "agentos.whole_request"
"""Gives the body of a request that is here as a whole, once; None where it is to be received. What is received afterwards
comes behind it: the disconnect."""

WholeRequest: TypeAlias = Callable[[], bytes | None]

Fields: TypeAlias = tuple[tuple[bytes, ...], tuple[bytes, ...]]
"""Of a head: their names, which are mostly the same, and their values in the same order."""

NO_FIELDS: Final[Fields] = ((), ())

WHOLE_RESPONSE: Final = "agentos.whole_response"
"""Sends a response that is there as a whole, its `content-length` among its fields; whether it did. If not, it is to be
sent in parts."""

WholeResponse: TypeAlias = Callable[[int, Fields, bytes], bool]

STREAM_PIECE: Final = "agentos.stream_piece"
"""Sends a piece of a stream that has begun, the last one or not; whether it did. If not, it is to be sent as ever: whoever
reads it is slow, or gone."""

StreamPiece: TypeAlias = Callable[[bytes, bool], bool]

HEAD_MEMORY: Final = "agentos.head_memory"
"""What may be remembered of a request's head alone: the same dictionary for as long as the heads of a connection are the
same, byte for byte but for the length of the body. By whoever remembers it."""

HeadMemory: TypeAlias = dict[object, Any]


class Turn(Protocol):
    """A request that is here as a whole, behind a head whose memory is kept, before anybody waits for anything."""

    scope: Any
    """As the app is given it."""
    memory: HeadMemory

    @property
    def body(self) -> bytes | bytearray:
        """All of it, until it is `taken`."""
        ...

    def taken(self) -> bytes | None: ...

    def whole(self, status: int, fields: Fields, body: bytes, /) -> bool:
        """As `WHOLE_RESPONSE`."""
        ...

    def go_on(self) -> None:
        """What is left of it is done by `AtOnce.rest` from here on. After its answer that means nothing."""
        ...


class AtOnce(Protocol):
    """A request that has begun without a task."""

    under_way: bool
    """It goes on by itself, in callbacks, until the server sets this to False: then by `rest` alone, as where the client
    leaves or the server ends."""

    async def rest(self, scope: Any, receive: Any, send: Any, /) -> None:
        """An ASGI app for what is left of it."""
        ...


BeginsAtOnce: TypeAlias = Callable[[Turn], AtOnce | None]
"""`at_once` of an app that has it. None: it is the app's own, from its beginning, and nothing was done of it."""
