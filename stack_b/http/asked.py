"""What an endpoint gets and gives: one that is reached without a framework."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from msgspec import Struct

from ports.http.disconnect import ON_DISCONNECT, OnDisconnect
from ports.http.edge import App, Exchange, Receive, Scope, Send, exchange


class Asked(Struct, frozen=True):
    """A request that the edge has let through."""

    exchange: Exchange
    receive: Receive
    on_disconnect: OnDisconnect | None = None
    """Where the server has it."""


class Reply(Protocol):
    """An ASGI app that answers one request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> None: ...


Endpoint: TypeAlias = Callable[[Asked], Awaitable[Reply]]


def served(endpoint: Endpoint) -> App:
    """`endpoint` for the edge."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        extensions = scope.get("extensions") or {}
        reply = await endpoint(Asked(exchange(scope), receive, extensions.get(ON_DISCONNECT)))
        await reply(scope, receive, send)

    return app
