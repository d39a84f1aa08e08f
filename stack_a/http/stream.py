"""Server-sent events of one run: frames, keep-alives, and authorization checked again while the stream is open."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import timedelta
from typing import Final

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, ResourceExhausted
from ports.event import Event
from ports.http import sse
from ports.http.edge import Exchange

logger = logging.getLogger("agentos.http")

KEEP_ALIVE_EVERY: Final = timedelta(seconds=15)
REAUTHORIZE_EVERY: Final = timedelta(seconds=3)
"""With the two seconds a verifier may remember, a revocation ends open streams within five."""
TICK: Final = timedelta(seconds=1)
MAX_PER_PRINCIPAL: Final = 64
MAX_PER_TENANT: Final = 512


class OpenStreams:
    """Counts the streams of this process, and refuses more than the published caps."""

    def __init__(self) -> None:
        self._open: Counter[tuple[str, ...]] = Counter()

    def take(self, auth: AuthContext) -> Callable[[], None]:
        """Take a place; the result gives it back. Raises `ResourceExhausted` (`concurrency_limited`) when there is none."""
        caps = {(auth.tenant,): MAX_PER_TENANT, (auth.tenant, auth.principal): MAX_PER_PRINCIPAL}
        if any(self._open[who] >= cap for who, cap in caps.items()):
            raise ResourceExhausted(
                f"too many open event streams; the caps are {MAX_PER_PRINCIPAL} per principal, {MAX_PER_TENANT} per tenant",
                code="concurrency_limited",
                retry_after=timedelta(seconds=1),
            )
        self._open.update(caps.keys())

        def give_back() -> None:
            self._open.subtract(caps.keys())
            self._open += Counter()  # drops the zeros

        return give_back


async def frames(
    events: AsyncIterator[Event], *, stream_epoch: str, found: Exchange, clock: Clock
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. Ends after the terminal event, and within 5 s when the caller's token no longer holds.

    A store that fails in between ends the stream as well: the client reconnects with `Last-Event-ID` and misses nothing.
    """
    assert found.reauthorize is not None, "event routes need a scope"
    authorized_at = spoke_at = clock.monotonic()
    upcoming: asyncio.Task[Event] | None = None
    tick: asyncio.Task[None] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.create_task(_next(events))
            tick = tick or asyncio.create_task(clock.sleep(TICK))
            await asyncio.wait({upcoming, tick}, return_when=asyncio.FIRST_COMPLETED)
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
        waiting = {task for task in (upcoming, tick) if task is not None}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


class _Ended(Exception):
    """The events are over. A task can't raise `StopAsyncIteration`."""


async def _next(events: AsyncIterator[Event]) -> Event:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise _Ended from None
