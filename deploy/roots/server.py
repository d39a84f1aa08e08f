"""Serving an ASGI app on one port: uvloop and httptools, bounded headers, no patience with slow senders, a graceful end."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from socket import socket
from typing import Any, Final, cast

import uvicorn
import uvloop

from deploy.handover import Door, inherited
from deploy.roots.accepting import Accepting
from deploy.roots.http_protocol import BoundedProtocol
from deploy.roots.start import start_is_over
from ports.http.edge import App

GRACE_S: Final = 20
"""How long open requests may take to finish after SIGTERM; then they are cancelled, which settles what they hold."""
WAY_OUT_S: Final = 5.0
"""How long requests that were cancelled may take to end. Settlements that take longer go on, and are waited for later."""
LINGER_S: Final = 2.0
"""How long a server that has a successor keeps idle connections open: their clients come back meanwhile and are told that
it was the last time. Closed at once, one of them might have been sending at that moment."""
KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of the usual client pools and proxies (60 s), so that they close first."""
_LOOK_S: Final = 0.05


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_leaving: Callable[[], None], door: Door | None) -> None:
        super().__init__(config)
        self._on_leaving = on_leaving
        self._door = door
        self._accepting: Accepting | None = None

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        listeners = [listener.fileno() for server in self.servers for listener in server.sockets]
        self._accepting = Accepting(listeners, self._protocol)
        if self._door is not None:
            self._door.open(listeners)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes one for each connection that it accepts."""
        return BoundedProtocol(self.config, self.server_state, self.lifespan.state)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        if self._accepting is not None:
            await self._accepting.close()
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
        interface="asgi3",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        # The peer's own address: a forwarded one is only somebody's word.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    start_is_over()
    sockets = inherited(handover, host=host, port=port) if handover is not None else []
    if sockets:
        await _until_ready(app)
    door = Door(handover, host=host, port=port) if handover is not None else None
    await _Server(config, on_leaving, door).serve(sockets or None)


async def _until_ready(app: App) -> None:
    """Until `app` says so itself, for as long as it takes: somebody else serves meanwhile."""
    import httpx  # noqa: PLC0415 - who has no predecessor needn't load it, and is ready the sooner

    transport = httpx.ASGITransport(cast("Any", app))  # its type of an app is another's than ours
    async with httpx.AsyncClient(transport=transport, base_url="http://itself") as client:
        while (await client.get("/readyz")).status_code != httpx.codes.OK:  # noqa: ASYNC110 - dependencies set no event
            await asyncio.sleep(_LOOK_S)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service's main coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
