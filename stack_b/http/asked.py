"""What an endpoint gets and gives: one that is reached without a framework."""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias

from msgspec import Struct

from ports.http.body import Receive
from ports.http.edge import Answering, EdgeApp, Exchange, Scope, Send
from ports.http.extensions import ON_DISCONNECT, OnDisconnect

_JSON: Final = b"application/json"


class Asked(Struct, frozen=True):
    """A request that the edge has let through."""

    exchange: Exchange
    path: str
    receive: Receive
    on_disconnect: OnDisconnect | None = None
    """Where the server has it."""


class Whole(Struct, frozen=True, gc=False):
    """An answer that is there."""

    body: bytes
    status: int = 200
    media_type: bytes = _JSON


class Begun(Protocol):
    """An answer that is on its way: an ASGI app for the one request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> None: ...


Reply: TypeAlias = Whole | Begun
Endpoint: TypeAlias = Callable[[Asked], Awaitable[Reply]]


def served(endpoint: Endpoint) -> EdgeApp:
    """`endpoint` for the edge."""

    async def app(scope: Scope, receive: Receive, send: Answering) -> None:
        await replied(endpoint(asked_of(scope, receive, send)), scope, receive, send)

    return app


def asked_of(scope: Scope, receive: Receive, send: Answering) -> Asked:
    return Asked(send.found, scope["path"], receive, send.extensions.get(ON_DISCONNECT))


async def replied(work: Awaitable[Reply], scope: Scope, receive: Receive, send: Answering) -> None:
    reply = await work
    if isinstance(reply, Whole):
        await send.whole(reply.status, [(b"content-type", reply.media_type)], reply.body)
    else:
        await reply(scope, receive, send)
