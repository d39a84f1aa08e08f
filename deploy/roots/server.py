"""Serving an ASGI app on one port: uvloop and httptools, bounded headers, no patience with slow senders, a graceful end."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, ClassVar, Final, cast

import httpx
import uvicorn
import uvloop
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deploy.handover import Door, inherited
from deploy.roots.sender_watch import SenderWatch
from ports.http.edge import App
from ports.http.sse import GONE, HANG_UP

MAX_HEADER_BYTES: Final = 32 * 1024
SENDER_WINDOW_S: Final = 30.0
SENDER_WINDOW_BYTES: Final = 30 * 1024
"""What a sender whose request isn't complete must send in each window, which is 1 KiB/s; a slower one is cut off."""
GRACE_S: Final = 20
"""How long open requests may take to finish after SIGTERM; then they are cancelled, which settles what they hold."""
WAY_OUT_S: Final = 5.0
"""How long requests that were cancelled may take to end. Settlements that take longer go on, and are waited for later."""
HANG_UP_S: Final = 5
"""How long a client that was hung up on may take to read what is in the write buffer; then the socket is closed."""
LINGER_S: Final = 2.0
"""How long a server that has a successor keeps idle connections open: their clients come back meanwhile and are told that
it was the last time. Closed at once, one of them might have been sending at that moment."""
KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of the usual client pools and proxies (60 s), so that they close first."""
_LOOK_S: Final = 0.05


class _HeadersTooLarge(Exception):
    """Raised inside the parser's callback, where it ends the connection with 400."""


class _Flow(FlowControl):
    """uvicorn's flow control; tells the watch when it is we who do not read."""

    def __init__(self, transport: asyncio.Transport, watch: SenderWatch) -> None:
        super().__init__(transport)
        self._watch = watch

    def pause_reading(self) -> None:
        super().pause_reading()
        self._watch.hold()

    def resume_reading(self) -> None:
        if self.read_paused:
            super().resume_reading()
            self._watch.release()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with two limits it doesn't have: on the header block, and on how slowly a request may come.

    A request is due from the connection's first moment, or from its own first byte, to its last. Between requests the
    connection is idle, which is uvicorn's affair. And it can hang up on a client that doesn't read: the ASGI extension
    `ports.http.sse.HANG_UP`.
    """

    window_s: ClassVar[float] = SENDER_WINDOW_S
    window_bytes: ClassVar[int] = SENDER_WINDOW_BYTES

    _watch: SenderWatch
    _head_bytes = 0
    _when_gone: Callable[[], None] | None = None
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself narrows it
        super().connection_made(transport)
        self._watch = SenderWatch(self.loop, self._too_slow, window_s=self.window_s, window_bytes=self.window_bytes)
        self.flow = _Flow(transport, self._watch)
        self._watch.expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.end()
        super().connection_lost(exc)
        act, self._when_gone = self._when_gone, None
        if act is not None and self.cycle is not None and self.cycle.disconnected:
            act()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The header block is too large.")
        self._watch.received(len(data))
        if not self._watch.expecting and self.timeout_keep_alive_task is None and self._answered():
            # What belongs to no request, such as empty lines before one, has put an end to the keep-alive's own timer.
            self._watch.expect()

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._watch.expect()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEADER_BYTES:
            raise _HeadersTooLarge
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._watch.rest()
        super().on_message_complete()

    def _answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _too_slow(self) -> None:
        if self.cycle is not None and self.cycle.waiting_for_100_continue:
            # The client was told to wait for our word, and the app hasn't asked for the body yet.
            self._watch.expect()
        else:
            # Not `close`, which waits until what was written is read: for somebody like this, perhaps for ever.
            self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._when_gone = None
        ours = {HANG_UP: partial(self._hang_up, cycle), GONE: partial(self._gone, cycle)}
        cycle.scope["extensions"] = ours  # type: ignore[typeddict-item]  # not of ASGI's own
        super()._start_asgi_task(cycle, app)

    def _gone(self, cycle: RequestResponseCycle, act: Callable[[], None]) -> None:
        if cycle.disconnected:
            self.loop.call_soon(act)
        elif not cycle.response_complete:
            self._when_gone = act

    def _hang_up(self, cycle: RequestResponseCycle, last: bytes) -> None:
        """End a chunked response with `last` behind what the client has not read yet, waiting for nothing."""
        if cycle.response_complete or self.transport.is_closing():
            return
        cycle.response_complete = True
        cycle.message_event.set()
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        # Closes once all is written, which a client that never reads again would put off for ever.
        self.transport.close()
        self.loop.call_later(HANG_UP_S, self.transport.abort)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_leaving: Callable[[], None], door: Door | None) -> None:
        super().__init__(config)
        self._on_leaving = on_leaving
        self._door = door

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self._door is not None:
            self._door.open(listener.fileno() for server in self.servers for listener in server.sockets)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        if self._door is not None:
            self._door.close()
            if self._door.superseded():
                await self._send_away()
        await super().shutdown(sockets)
        await self._cut_off()

    async def _cut_off(self) -> None:
        """Wait for requests that were cancelled: on their way out they settle what they hold."""
        left = set(self.server_state.tasks)
        if self.force_exit:
            for task in left:
                task.cancel()
        if left:
            await asyncio.wait(left, timeout=WAY_OUT_S)

    async def _send_away(self) -> None:
        """Accept nothing more, answer what still comes on open connections, and say on each that it is the last."""
        for server in self.servers:
            server.close()
        self.server_state.default_headers.append((b"connection", b"close"))
        loop = asyncio.get_running_loop()
        end = loop.time() + LINGER_S
        while self.server_state.connections and loop.time() < end and not self.force_exit:  # noqa: ASYNC110 - uvicorn's set
            await asyncio.sleep(_LOOK_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop on SIGTERM and SIGINT without raising them again, so that the caller still closes what it opened."""
        loop = asyncio.get_running_loop()
        ending = (signal.SIGTERM, signal.SIGINT)
        for number in ending:
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in ending:
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        # A second signal ends the grace period.
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_leaving()


async def serve(
    app: App, *, host: str, port: int, on_leaving: Callable[[], None] = lambda: None, handover: Path | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then call `on_leaving` and finish open requests within the grace period.

    With `handover`, the place of a door: whoever serves the address already is joined as soon as `app` is ready, and a
    successor may do the same to us.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        # The peer's own address: a forwarded one is only somebody's word.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    # What was built at start lives as long as the process: the collector needn't look at it again.
    gc.collect()
    gc.freeze()
    sockets = inherited(handover, host=host, port=port) if handover is not None else []
    if sockets:
        await _until_ready(app)
    door = Door(handover, host=host, port=port) if handover is not None else None
    await _Server(config, on_leaving, door).serve(sockets or None)


async def _until_ready(app: App) -> None:
    """Until `app` says so itself, for as long as it takes: somebody else serves meanwhile."""
    transport = httpx.ASGITransport(cast("Any", app))  # its type of an app is another's than ours
    async with httpx.AsyncClient(transport=transport, base_url="http://itself") as client:
        while (await client.get("/readyz")).status_code != httpx.codes.OK:  # noqa: ASYNC110 - dependencies set no event
            await asyncio.sleep(_LOOK_S)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service's main coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
