"""A completion's chunks on their way to the client, as a small ASGI app.

The request's own task does all of it, from the backend's bytes to the socket: nothing is handed over and nothing waits in
between. A client that reads slowly is waited for, and then the backend waits. What happens beside it (keep-alives, a look
whether the token still holds) hangs on one timer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

from ports.context import AuthContext
from ports.errors import AgentOSError, Internal, Unavailable
from ports.http.body import Disconnected, Receive
from ports.http.edge import Scope, Send
from ports.http.extensions import ON_DISCONNECT, STREAM_PIECE, OnDisconnect, StreamPiece
from ports.http.sse import HANG_UP, one_line
from stack_b.caller import Caller, Gone
from stack_b.chunks import Closing, Piece, Run
from stack_b.flights import Flight
from stack_b.http.surfaces.wire import Wire, told
from stack_b.interrupt import Deadlines, Within, out_of_time
from stack_b.relay import Show

KEEP_ALIVE_EVERY: Final = timedelta(seconds=15)
"""Of silence. Proxies cut what is idle for 30 to 60 s."""
REAUTHORIZE_EVERY: Final = timedelta(seconds=2)
"""Revocation ends an open stream within 5 s; the verifier may remember for some of them."""

_HEADERS: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]

logger = logging.getLogger("agentos.gateway")


class ChatStream:
    """Sends the chunks as they come.

    The status waits for the first chunk or the first keep-alive: a failure before that is raised, and answered by the
    edge with the status it deserves. A failure after it is told in the client's dialect, and nothing comes after it. When
    the client leaves, the token no longer holds, or time is up, the chunks are closed, which settles the budget; what
    `caller` says is billed to its end is read to its end first.
    """

    def __init__(
        self,
        carried: Callable[[Show], Awaitable[None]],
        *,
        wire: Wire,
        route: str,
        auth: AuthContext,
        reauthorize: Callable[[], Awaitable[AuthContext]] | None,
        deadlines: Deadlines,
        caller: Caller,
        flight: Flight | None = None,
    ) -> None:
        """`carried`: shows the chunks. `flight`: the call of a client that may try again."""
        self._carry = carried
        self._wire = wire
        self._route = route
        self._auth = auth
        self._reauthorize = reauthorize
        self._deadlines = deadlines
        self._caller = caller
        self._flight = flight
        self._whole = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = _Out(scope, send, self._sending)
        watch = _Watch(self._caller, out, self._wire.keep_alive, self._reauthorize, self._failed)
        failure: AgentOSError | None = None
        if self._flight is not None:
            self._flight.stop = self._caller.leave
            self._flight.begin()
        try:
            failure = await self._carried(scope, receive, out, watch)
        finally:
            if self._flight is not None:
                self._flight.end(error=None if self._whole else failure or Disconnected())
        if failure is not None:
            await self._refuse(failure, out)

    async def _carried(self, scope: Scope, receive: Receive, out: "_Out", watch: "_Watch") -> AgentOSError | None:
        """What the client must be told to have gone wrong."""
        failure: AgentOSError | None = None
        try:
            await self._relay(scope, receive, out, watch)
        except TimeoutError:
            if not self._caller.gone:
                failure = out_of_time(self._deadlines.seconds)
        except Gone:
            pass
        except AgentOSError as error:
            failure = told(error, self._wire.names)
        except asyncio.CancelledError:
            # The process ends, and has waited for as long as it may. What was used is settled.
            out.hang_up(self._failed(Unavailable("the gateway is shutting down; ask again")))
            raise
        except Exception as error:  # the stream's own HTTP edge: the real one can't answer any more
            logger.exception("http.failed", extra={"route": self._route})
            failure = Internal(str(error))
        return watch.refusal or failure

    async def _relay(self, scope: Scope, receive: Receive, out: "_Out", watch: "_Watch") -> None:
        """All of it. Raises `TimeoutError` when time is up, and `Gone` when it must end."""
        with Within(self._deadlines) as interrupt:
            self._caller.ends_by(interrupt)
            ended = False

            async def show(pieces: Sequence[Piece]) -> None:
                nonlocal ended
                if self._flight is not None:
                    self._flight.tell(pieces)
                frames = b"".join(map(self._frames, pieces))
                if isinstance(pieces, Closing):
                    await out.send(frames + self._wire.end(), last=True)
                    ended = True
                elif frames:
                    await out.send(frames)

            try:
                watch.begin((scope.get("extensions") or {}).get(ON_DISCONNECT), receive, self._left)
                await self._carry(show)
                if not ended:
                    await out.send(self._wire.end(), last=True)
                self._whole = True
            finally:
                self._caller.ends_by(None)
                watch.end()

    def _left(self) -> None:
        """The client has."""
        if self._flight is None:
            self._caller.leave()
        else:
            self._flight.client_left()

    def _sending(self) -> None:
        if self._flight is not None:
            self._flight.sending()

    async def _refuse(self, failure: AgentOSError, out: "_Out") -> None:
        if not out.started:
            raise failure
        # A client that reads nothing must not keep what is over.
        if not out.hang_up(self._failed(failure)):
            await out.send(self._failed(failure), last=True)

    def _frames(self, piece: Piece) -> bytes:
        return self._wire.run(piece) if isinstance(piece, Run) else self._wire.chunk(piece)

    def _failed(self, failure: AgentOSError) -> bytes:
        return self._wire.failed(failure, self._auth.trace.correlation_id)


class _Out:
    """The way to the client: one thing at a time, the head before the first of them."""

    def __init__(self, scope: Scope, send: Send, on_start: Callable[[], None]) -> None:
        self._send = send
        self._on_start = on_start
        extensions = scope.get("extensions") or {}
        self._hang_up: Callable[[bytes], None] | None = extensions.get(HANG_UP)
        self._at_once: StreamPiece | None = extensions.get(STREAM_PIECE)
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._sending: asyncio.Task[None] | None = None
        """A keep-alive on its way."""
        self._busy = False
        self.started = False
        self.muted = False
        """Nothing more is shown."""
        self.last_sent = self._loop.time()

    async def send(self, frames: bytes, *, last: bool = False) -> None:
        if self._sending is not None:
            await asyncio.wait({self._sending})
        if not self.muted and not self._sent_at_once(frames, last=last):
            await self._now(frames, last=last)

    def keep_alive(self, frames: bytes) -> None:
        """Beside whoever sends; nothing while they do."""
        self.last_sent = self._loop.time()
        if not self._busy and not self.muted and self._sending is None:
            self._sending = asyncio.create_task(self._now(frames, last=False))
            self._sending.add_done_callback(self._sent)

    def hang_up(self, last: bytes) -> bool:
        """End it with `last`, whether the client reads or not. False where that isn't possible."""
        if self._over:
            return True
        if self._hang_up is None or not self.started:
            return False
        self._over = self.muted = True
        self._hang_up(one_line(last))
        return True

    def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()

    def _sent_at_once(self, frames: bytes, *, last: bool) -> bool:
        """Mostly: nobody has to wait for the client."""
        if self._at_once is None or not self.started or not self._at_once(one_line(frames), last):
            return False
        self.last_sent = self._loop.time()
        self._over = last
        return True

    async def _now(self, frames: bytes, *, last: bool) -> None:
        self._busy = True
        try:
            if not self.started:
                self.started = True
                self._on_start()
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            self.last_sent = self._loop.time()
            self._over = last
            await self._send({"type": "http.response.body", "body": one_line(frames), "more_body": not last})
        finally:
            self._busy = False

    def _sent(self, _: asyncio.Task[None]) -> None:
        self._sending = None


class _Watch:
    """What happens beside a stream."""

    def __init__(
        self,
        caller: Caller,
        out: _Out,
        keep_alive: bytes,
        reauthorize: Callable[[], Awaitable[AuthContext]] | None,
        failed: Callable[[AgentOSError], bytes],
    ) -> None:
        self._caller = caller
        self._out = out
        self._keep_alive = keep_alive
        self._reauthorize = reauthorize
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._asked = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self.refusal: AgentOSError | None = None
        """Why the caller may have no more of it."""

    def begin(self, on_disconnect: OnDisconnect | None, receive: Receive, left: Callable[[], None]) -> None:
        if on_disconnect is not None:
            on_disconnect(left)
        else:
            self._waiting = asyncio.create_task(_until_gone(receive, left))
        self._set()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in (self._waiting, self._asking):
            if task is not None:
                task.cancel()
        self._out.close()

    def _set(self) -> None:
        due = self._out.last_sent + KEEP_ALIVE_EVERY.total_seconds()
        if self._reauthorize is not None and self._asking is None:
            due = min(due, self._asked + REAUTHORIZE_EVERY.total_seconds())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._out.last_sent + KEEP_ALIVE_EVERY.total_seconds():
            self._out.keep_alive(self._keep_alive)
        due = self._asking is None and now >= self._asked + REAUTHORIZE_EVERY.total_seconds()
        if due and self._reauthorize is not None and not self._caller.gone:
            self._asking = asyncio.create_task(self._ask(self._reauthorize))
        elif due:
            self._asked = now
        self._set()

    async def _ask(self, reauthorize: Callable[[], Awaitable[AuthContext]]) -> None:
        try:
            await reauthorize()
        except Unavailable:
            # Not being able to ask is no revocation; the next round asks again.
            pass
        except AgentOSError as error:
            self.refusal = error
            self._caller.leave()
            if self._caller.bound:
                # It is read to its end, and nothing of that is shown.
                self._out.hang_up(self._failed(error))
                self._out.muted = True
            return
        finally:
            self._asking, self._asked = None, self._loop.time()
        self._set()


async def _until_gone(receive: Receive, left: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    left()
