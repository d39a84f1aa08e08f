"""Answers as small ASGI apps: a body that is there; and what is done while one is made."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from litestar.types import ASGIApp
from msgspec import Struct

from ports.http.edge import Disconnected, Receive, Scope, Send
from ports.messages import Json
from stack_b.caller import Caller
from stack_b.http.chat_stream import ChatStream

T = TypeVar("T")


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[T], caller: Caller | None = None) -> T:
    """What `work` comes to; it is ended when the client leaves meanwhile, as `caller` has it. `receive`: as the framework
    types it.

    Raises:
        Disconnected: the client is gone.
    """
    who = caller or Caller()
    try:
        async with asyncio.timeout(None) as patience:
            who.on_leaving = lambda: patience.reschedule(0)
            watcher = asyncio.create_task(_until_gone(receive, who))
            try:
                return await work
            finally:
                watcher.cancel()
    except TimeoutError:
        if patience.expired():
            raise Disconnected from None
        raise


async def _until_gone(receive: Callable[[], Awaitable[Any]], caller: Caller) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    caller.leave()


class JsonReply:
    """An ASGI app that answers with one JSON body."""

    def __init__(self, body: bytes, *, status: int = 200, media_type: bytes = b"application/json") -> None:
        self._body = body
        self._status = status
        self._media_type = media_type

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self._media_type), (b"content-length", str(len(self._body)).encode())]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def json_reply(value: Struct | dict[str, Json], *, status: int = 200) -> ASGIApp:
    return asgi(JsonReply(msgspec.json.encode(value), status=status))


def asgi(reply: JsonReply | ChatStream) -> ASGIApp:
    return reply  # type: ignore[return-value]  # the same ASGI callable; Litestar spells its messages out
