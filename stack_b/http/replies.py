"""Answers: a body that is there, and a stream of chunks that is on its way."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Struct

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Internal, Unavailable
from ports.http.edge import Disconnected, Receive, Scope, Send
from ports.messages import Json
from stack_b.chunks import Piece, Run
from stack_b.flights import Flight
from stack_b.http.asked import Asked, Whole
from stack_b.http.surfaces.wire import Wire, told
from stack_b.interrupt import Interrupt, out_of_time

KEEP_ALIVE_EVERY: Final = timedelta(seconds=15)
REAUTHORIZE_EVERY: Final = timedelta(seconds=2)
"""Revocation ends an open stream within 5 s; the verifier may remember for some of them."""
MAX_WAITING: Final = 64
"""Chunks that wait for a slow reader; then the backend waits."""

logger = logging.getLogger("agentos.gateway")


async def unless_gone(asked: Asked, work: Awaitable[dict[str, Json]], flight: Flight | None = None) -> dict[str, Json]:
    """What `work` comes to; it is cancelled when the client leaves meanwhile. A `flight` may go on all the same.

    Raises:
        Disconnected: the client is gone.
    """
    with Interrupt(Disconnected) as interrupt:
        left = interrupt.fire
        if flight is not None:
            flight.stop = interrupt.fire
            left = flight.client_left
            work = flight.carried(work)
        if asked.on_disconnect is not None:
            asked.on_disconnect(left)
            return await work
        # A server that can't tell by itself is asked.
        watcher = asyncio.create_task(_gone(asked.receive, left))
        try:
            return await work
        finally:
            watcher.cancel()


async def _gone(receive: Receive, left: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    left()


class ChatStream:
    """An ASGI app that sends a completion's chunks as they come.

    The status waits for the first chunk or the first keep-alive: a failure before that is raised, and answered by the
    edge with the status it deserves. A failure after it is told in the client's dialect, and nothing comes after it. When
    the client leaves, the token no longer holds, or time is up, the chunks are closed, which settles the budget.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[Sequence[Piece], None],
        *,
        wire: Wire,
        route: str,
        auth: AuthContext,
        clock: Clock,
        reauthorize: Callable[[], Awaitable[AuthContext]] | None,
        deadline: timedelta,
        flight: Flight | None = None,
    ) -> None:
        """`flight`: the call of a client that may try again."""
        self._chunks = chunks
        self._wire = wire
        self._route = route
        self._auth = auth
        self._clock = clock
        self._reauthorize = reauthorize
        self._deadline = deadline
        self._flight = flight
        # The room is counted beside the queue, so that its end always fits.
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._failure: AgentOSError | None = None

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        producer = asyncio.create_task(self._produce())
        if self._flight is not None:
            self._flight.stop = producer.cancel
        watchers = [asyncio.create_task(self._until_gone(receive, producer))]
        if self._reauthorize is not None:
            watchers.append(asyncio.create_task(self._until_revoked(self._reauthorize, producer)))
        try:
            await self._relay(send)
        finally:
            for task in (*watchers, producer):
                task.cancel()
            # The producer's end is the settlement's: the meter bounds it.
            await asyncio.wait([*watchers, producer])

    async def _produce(self) -> None:
        """Frames into the queue, then None. The chunks are opened and closed in this one task."""
        whole = False
        if self._flight is not None:
            self._flight.begin()
        try:
            async with asyncio.timeout(self._deadline.total_seconds()), aclosing(self._chunks) as chunks:
                async for pieces in chunks:
                    if self._flight is not None:
                        self._flight.tell(pieces)
                    frames = b"".join(map(self._frames, pieces))
                    if frames:
                        await self._room.acquire()
                        self._queue.put_nowait(frames)
                self._queue.put_nowait(self._wire.end())
            whole = True
        except TimeoutError:
            self._failure = out_of_time(int(self._deadline.total_seconds()))
        except AgentOSError as error:
            self._failure = told(error, self._wire.names)
        except Exception as error:  # the stream's own HTTP edge: the real one can't answer any more
            logger.exception("http.failed", extra={"route": self._route})
            self._failure = Internal(str(error))
        finally:
            self._queue.put_nowait(None)
            if self._flight is not None:
                self._flight.end(error=None if whole else self._failure or Disconnected())

    def _frames(self, piece: Piece) -> bytes:
        return self._wire.run(piece) if isinstance(piece, Run) else self._wire.chunk(piece)

    async def _relay(self, send: Send) -> None:
        started = False
        while True:
            frames, ended = await self._next_frames()
            if ended and self._failure is not None:
                if not started and not frames:
                    raise self._failure
                frames += self._wire.failed(self._failure, self._auth.trace.correlation_id)
            if not started:
                started = True
                if self._flight is not None:
                    self._flight.sending()
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": frames, "more_body": not ended})
            if ended:
                return

    async def _next_frames(self) -> tuple[bytes, bool]:
        """All frames that are ready, at least one or a keep-alive; and whether they are the last."""
        try:
            async with asyncio.timeout(KEEP_ALIVE_EVERY.total_seconds()):
                frame = await self._queue.get()
        except TimeoutError:
            return self._wire.keep_alive, False
        frames: list[bytes] = []
        while frame is not None:
            self._room.release()
            frames.append(frame)
            if self._queue.empty():
                return b"".join(frames), False
            frame = self._queue.get_nowait()
        return b"".join(frames), True

    async def _until_gone(self, receive: Receive, producer: asyncio.Task[None]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._flight is None or not self._flight.left():
            producer.cancel()

    async def _until_revoked(
        self, reauthorize: Callable[[], Awaitable[AuthContext]], producer: asyncio.Task[None]
    ) -> None:
        while True:
            await self._clock.sleep(REAUTHORIZE_EVERY)
            try:
                await reauthorize()
            except Unavailable:
                # Not being able to ask is no revocation; the next round asks again.
                continue
            except AgentOSError as error:
                self._failure = error
                producer.cancel()
                return


def json_reply(value: Struct | dict[str, Json]) -> Whole:
    return Whole(msgspec.json.encode(value))
