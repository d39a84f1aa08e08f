"""Server-sent events of one run: frames, keep-alives, and authorization checked again while the stream is open.

A reader that is slower than the run costs a page of events and the server's write buffer. One that takes nothing for
`LAGGED_AFTER` is closed with the comment `lagged`; it comes back with `Last-Event-ID` and has missed nothing.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final, TypeAlias, cast

import anyio
from litestar import Litestar, Request, Response
from litestar.response.base import ASGIResponse
from litestar.types import Message, Receive, Send

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Unavailable
from ports.event import Event
from ports.http import sse
from ports.http.edge import Exchange
from ports.quota_rules import StreamPlaces
from ports.tenant import Entitlements

logger = logging.getLogger("agentos.http")

KEEP_ALIVE_EVERY: Final = timedelta(seconds=15)
REAUTHORIZE_EVERY: Final = timedelta(seconds=3)
"""With the two seconds a verifier may remember, a revocation ends open streams within five."""
LAGGED_AFTER: Final = timedelta(seconds=30)
"""How long a reader may leave the server's write buffer full."""
STALLED_AFTER: Final = timedelta(seconds=1)
"""The same once the process is leaving."""


class OpenStreams:
    """Counts the streams of this process, and refuses more than a tenant may have."""

    def __init__(self, *, share: int = 1) -> None:
        self._places = StreamPlaces(kind="event streams", share=share)
        self.closing = asyncio.Event()

    @property
    def count(self) -> int:
        """How many are open."""
        return self._places.count

    def close(self) -> None:
        """End every stream now, and take no new one: the process is leaving, and clients resume elsewhere."""
        self.closing.set()

    def take(self, auth: AuthContext, entitled: Entitlements) -> Callable[[], None]:
        """Take a place; the result gives it back.

        Raises:
            ResourceExhausted: `concurrency_limited`, there is none.
            Unavailable: the process is leaving.
        """
        if self.closing.is_set():
            raise Unavailable("this process is shutting down; connect again", retry_after=timedelta(seconds=1))
        return self._places.take(
            auth, per_tenant=entitled.max_event_streams, per_principal=entitled.max_event_streams_per_principal
        )


async def frames(
    events: AsyncIterator[Event], *, stream_epoch: str, found: Exchange, clock: Clock, closing: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. Ends after the terminal event, at `closing`, and within 5 s when the caller's token no longer
    holds.

    A store that fails in between ends the stream as well: the client reconnects with `Last-Event-ID` and misses nothing.
    """
    assert found.reauthorize is not None, "event routes need a scope"
    authorized_at = spoke_at = clock.monotonic()
    upcoming: asyncio.Task[Event] | None = None
    tick: asyncio.Task[None] | None = None
    leaving = asyncio.create_task(_set(closing))
    try:
        while not closing.is_set():
            upcoming = upcoming or asyncio.create_task(_next(events))
            tick = tick or asyncio.create_task(clock.sleep(_until_due(clock.monotonic(), authorized_at, spoke_at)))
            await asyncio.wait({upcoming, tick, leaving}, return_when=asyncio.FIRST_COMPLETED)
            now = clock.monotonic()
            if now - authorized_at >= REAUTHORIZE_EVERY.total_seconds():
                await found.reauthorize()
                authorized_at = now
            if upcoming.done():
                frame = sse.frame(upcoming.result(), stream_epoch)
                upcoming, spoke_at = None, now
                yield frame
            elif now - spoke_at >= KEEP_ALIVE_EVERY.total_seconds():
                spoke_at = now
                yield sse.KEEP_ALIVE
            if tick.done():
                tick = None
    except _Ended:
        return
    except AgentOSError as error:
        logger.info("events.closed", extra={"code": error.code})
    finally:
        waiting = {task for task in (upcoming, tick, leaving) if task is not None}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _until_due(now: float, authorized_at: float, spoke_at: float) -> timedelta:
    """How long nothing needs to be done, if nothing happens."""
    return min(
        REAUTHORIZE_EVERY - timedelta(seconds=now - authorized_at), KEEP_ALIVE_EVERY - timedelta(seconds=now - spoke_at)
    )


class EventStream(Response[bytes]):
    """The response: `chunks` as they come, unless the reader lags."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], closing: asyncio.Event) -> None:
        super().__init__(b"", media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._chunks = chunks
        self._closing = closing

    def to_asgi_response(
        self,
        app: Litestar | None,  # noqa: ARG002 - the framework's signature
        request: Request[Any, Any, Any],
        **_: Any,  # the head comes from the edge and from us
    ) -> ASGIResponse:
        hang_up = (request.scope.get("extensions") or {}).get(sse.HANG_UP)
        return _Sending(
            self._chunks,
            self._closing,
            cast("HangUp | None", hang_up),
            headers=self.headers,
            media_type="text/event-stream",
            status_code=200,
        )


HangUp: TypeAlias = Callable[[bytes], None]


class _Sending(ASGIResponse):
    __slots__ = ("_chunks", "_closing", "_hang_up", "_patience")

    _should_set_content_length = False

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        closing: asyncio.Event,
        hang_up: HangUp | None,
        **head: Any,  # the framework's own
    ) -> None:
        super().__init__(**head)
        self._chunks = chunks
        self._closing = closing
        self._hang_up = hang_up
        self._patience: anyio.CancelScope | None = None

    async def send_body(self, send: Send, receive: Receive) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._end_with_the_client, receive, group.cancel_scope)
            group.start_soon(self._lose_patience_at_the_end)
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    if not await self._taken(send, chunk, more=True):
                        await self._give_up(send)
                        break
                else:
                    if not await self._taken(send, b"", more=False):
                        await self._give_up(send)
            group.cancel_scope.cancel()

    @staticmethod
    async def _end_with_the_client(receive: Receive, sending: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()

    async def _lose_patience_at_the_end(self) -> None:
        await self._closing.wait()
        if self._patience is not None:
            soon = anyio.current_time() + STALLED_AFTER.total_seconds()
            self._patience.deadline = min(self._patience.deadline, soon)

    async def _taken(self, send: Send, chunk: bytes, *, more: bool) -> bool:
        """Whether the server had room for `chunk` in time."""
        message: Message = {"type": "http.response.body", "body": chunk, "more_body": more}
        patience = STALLED_AFTER if self._closing.is_set() else LAGGED_AFTER
        with anyio.move_on_after(patience.total_seconds()) as self._patience:
            await send(message)
        return not self._patience.cancelled_caught

    async def _give_up(self, send: Send) -> None:
        logger.info("events.lagged")
        if self._hang_up is not None:
            self._hang_up(sse.LAGGED)
        else:
            await self._taken(send, sse.LAGGED, more=False)


class _Ended(Exception):
    """The events are over. A task can't raise `StopAsyncIteration`."""


async def _next(events: AsyncIterator[Event]) -> Event:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise _Ended from None


async def _set(event: asyncio.Event) -> None:
    await event.wait()
