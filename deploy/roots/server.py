"""Serving an ASGI app on one port: uvloop and httptools, bounded headers, a graceful end."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Coroutine, Generator
from typing import Any, Final

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ports.http.edge import App

MAX_HEADER_BYTES: Final = 32 * 1024
GRACE_S: Final = 20
"""How long open requests may take to finish after SIGTERM; then they are cancelled, which settles what they hold."""
KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of the usual client pools and proxies (60 s), so that they close first."""


class _HeadersTooLarge(Exception):
    """Raised inside the parser's callback, where it ends the connection with 400."""


class BoundedHeaders(HttpToolsProtocol):
    """uvicorn's protocol with a limit on the header block, which httptools doesn't have."""

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The header block is too large.")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEADER_BYTES:
            raise _HeadersTooLarge
        super().on_headers_complete()


class _Server(uvicorn.Server):
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


async def serve(app: App, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish open requests within the grace period."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedHeaders,
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
    await _Server(config).serve()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service's main coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
