"""HTTP/1.1 on one connection: uvicorn's protocol, bounded, and quick where an answer is there as a whole."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, Literal

import httptools
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deploy.roots.http_cycle import Cycle, target
from deploy.roots.sender_watch import SenderWatch, WatchedFlow
from ports.http.extensions import ON_DISCONNECT, WHOLE_REQUEST, WHOLE_RESPONSE
from ports.http.sse import HANG_UP

MAX_HEADER_BYTES: Final = 32 * 1024
SENDER_WINDOW_S: Final = 30.0
SENDER_WINDOW_BYTES: Final = 30 * 1024
"""What a sender whose request isn't complete must send in each window, which is 1 KiB/s; a slower one is cut off."""
HANG_UP_S: Final = 5
"""How long a client that was hung up on may take to read what is in the write buffer; then the socket is closed."""


class _HeadersTooLarge(Exception):
    """Raised inside the parser's callback, where it ends the connection with 400."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with two limits it doesn't have: on the header block, and on how slowly a request may come.

    A request is due from the connection's first moment, or from its own first byte, to its last. Between requests the
    connection is idle, which is uvicorn's affair. And it can hang up on a client that doesn't read: the ASGI extension
    `ports.http.sse.HANG_UP`.
    """

    window_s: ClassVar[float] = SENDER_WINDOW_S
    window_bytes: ClassVar[int] = SENDER_WINDOW_BYTES

    _watch: SenderWatch
    _told: Callable[[], None] | None = None
    """Whom the request at work wants to be called when its client leaves."""
    _hanging_up: asyncio.TimerHandle | None = None
    _idle_since: float | None = None
    """When the last response was sent, while no other request has begun."""
    _idle_timer: asyncio.TimerHandle | None = None
    _came = 0
    """Bytes, at last."""
    _head_bytes = 0
    """Of a head that was not whole at once."""
    _in_head = True
    cycle: Cycle
    """The last request."""
    _due: Literal["begun", "more", "nothing"] = "nothing"
    """Of the request that comes: it has begun with the bytes at hand, or there is more of it to come."""
    _next: Cycle | None = None
    """The request to be started."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself narrows it
        super().connection_made(transport)
        self._watch = SenderWatch(self.loop, self._too_slow, window_s=self.window_s, window_bytes=self.window_bytes)
        self.flow = WatchedFlow(transport, self._watch)
        self._watch.expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.end()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._hanging_up is not None:
            self._hanging_up.cancel()
        super().connection_lost(exc)
        told, self._told = self._told, None
        if told is not None:
            told()

    def data_received(self, data: bytes) -> None:
        self._idle_since = None
        self._came = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._next = None
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade:
            self._unsupported_upgrade_warning()
        if self._next is not None:
            # Whoever has a body that is still to come is told what is wrong with its head already.
            self._start_asgi_task(self._next, self.app)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The header block is too large.")
        if self._due != "nothing" or self.cycle is None or self.cycle.response_complete:
            self._watch_sender(len(data))

    def _watch_sender(self, received: int) -> None:
        watch = self._watch
        if self._due == "begun":
            self._due = "more"
            watch.expect()
        elif self._due == "nothing" and watch.opened is None and self._idle_since is None:
            # What belongs to no request, such as empty lines before one, has put an end to the keep-alive's own timer.
            watch.expect()
        watch.received(received)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head, self._head_bytes = True, 0
        self._due = "begun"

    def on_headers_complete(self) -> None:
        self._in_head = False
        # Most come in one small piece; of others, or of what came behind another request, the size is to be found out.
        if (self._head_bytes or self._came > MAX_HEADER_BYTES) and self._head_size() > MAX_HEADER_BYTES:
            raise _HeadersTooLarge
        parser, before = self.parser, self.cycle
        version = parser.get_http_version()
        path, raw_path, query = target(self.url)
        scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": self.root_path,
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "extensions": {},
        }
        self.cycle = cycle = Cycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.server_state,
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._next = cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.add(body)
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._due = "nothing"
        if self._watch.opened is not None:
            self._watch.rest()
        if not self.cycle.response_complete:
            self.cycle.ended()
        if self._next is not None:
            self._start_asgi_task(self._next, self.app)

    # uvicorn's keep-alive, with a timer that is armed once in its time and not with every response.

    def on_response_complete(self) -> None:
        # Whoever wanted to know has its answer; what hangs on it need not wait for the connection's next request.
        self._told = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _look_if_idle(self) -> None:
        self._idle_timer = None
        if self._idle_since is None or self.transport.is_closing():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(left, self._look_if_idle)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_slow(self) -> None:
        if self.cycle is not None and self.cycle.waiting_for_100_continue:
            # The client was told to wait for our word, and the app hasn't asked for the body yet.
            self._watch.expect()
        else:
            # Not `close`, which waits until what was written is read: for somebody like this, perhaps for ever.
            self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        assert isinstance(cycle, Cycle), "this protocol makes no others"
        self._told = self._next = None
        extensions: dict[str, Any] = cycle.scope["extensions"]  # none of them is one of ASGI's own
        extensions[HANG_UP] = partial(self._hang_up, cycle)
        extensions[ON_DISCONNECT] = self._on_disconnect
        extensions[WHOLE_REQUEST] = cycle.taken
        extensions[WHOLE_RESPONSE] = cycle.whole

        def over(task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            # They hold the request that holds them: left alone, only the collector would find it, thousands at a time.
            extensions.clear()

        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(over)
        self.tasks.add(task)

    def _on_disconnect(self, call: Callable[[], None]) -> None:
        if self.transport.is_closing():
            call()
        else:
            self._told = call

    def _hang_up(self, cycle: RequestResponseCycle, last: bytes) -> None:
        """End a chunked response with `last` behind what the client has not read yet, waiting for nothing."""
        if cycle.response_complete or self.transport.is_closing():
            return
        cycle.response_complete = True
        cycle.message_event.set()
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        # Closes once all is written, which a client that never reads again would put off for ever.
        self.transport.close()
        self._hanging_up = self.loop.call_later(HANG_UP_S, self.transport.abort)
