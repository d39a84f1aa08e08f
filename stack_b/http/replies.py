"""Answers that are there; and what is done while one is made."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from ports.http.body import Disconnected, Receive
from ports.messages import Json
from stack_b.caller import Caller, Gone
from stack_b.flights import Flight
from stack_b.http.asked import Asked, Whole


async def unless_gone(
    asked: Asked, work: Awaitable[dict[str, Json]], caller: Caller, flight: Flight | None = None
) -> dict[str, Json]:
    """What `work` comes to; it is ended when the client leaves meanwhile, as `caller` has it. A `flight` may go on all the
    same.

    Raises:
        Disconnected: the client is gone.
    """
    left = caller.leave
    if flight is not None:
        flight.stop = caller.leave
        left = flight.client_left
        work = flight.carried(work)
    watcher: asyncio.Task[None] | None = None
    if asked.on_disconnect is not None:
        asked.on_disconnect(left)
    else:
        # A server that can't tell by itself is asked.
        watcher = asyncio.create_task(_gone(asked.receive, left))
    try:
        return await work
    except Gone:
        raise Disconnected from None
    finally:
        if watcher is not None:
            watcher.cancel()


async def _gone(receive: Receive, left: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    left()


def json_reply(value: Struct | dict[str, Json]) -> Whole:
    return Whole(msgspec.json.encode(value))
