"""HTTP/1.1 on one connection: uvicorn's protocol, bounded, and quick where an answer is there as a whole."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deploy.roots.http_cycle import Cycle, Refused, target
from deploy.roots.known_head import KnownHead, known_head
from deploy.roots.refusal import refusal
from deploy.roots.sender_watch import SenderWatch, WatchedFlow
from ports.http.extensions import (
    HEAD_MEMORY,
    ON_DISCONNECT,
    STREAM_PIECE,
    WHOLE_REQUEST,
    WHOLE_RESPONSE,
    AtOnce,
    BeginsAtOnce,
    HeadMemory,
)
from ports.http.limits import MAX_HEADER_BYTES, SENDER_WINDOW_BYTES, SENDER_WINDOW_S
from ports.http.sse import HANG_UP

READER_WINDOW_S: Final = 120.0
READER_WINDOW_BYTES: Final = 30 * 1024
"""What the reader of a last answer must take in each window; long, as what lies in the system's buffers does not count."""
MAX_FRAMING_BYTES: Final = 32 * 1024
"""What may come around a body in chunks that is not the body: sizes, extensions, trailers. Beside it `FRAMING_SHARE`."""
FRAMING_SHARE: Final = 8
"""Bytes of framing to each byte of the body: the smallest chunk has five."""
HANG_UP_S: Final = 5
"""How long a client that was hung up on may take to read what is in the write buffer; then the socket is closed."""
_TOO_LARGE: Final = "the header block is too large"
_NOWHERE: Final[deque[tuple[bytes, bytes]]] = deque(maxlen=0)
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_OF_ONE_REQUEST: Final = frozenset({"extensions", "state"})
"""Members of a scope that the next request with the same head does not begin with. A framework keeps in `state` what has
become of a request, such as that its answer has begun."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits it doesn't have: on the header block, on what comes around a body, and on how slowly a
    request may come. Fields behind a body (trailers) are dropped: read as header fields they would be an injection.

    A request is due from the connection's first moment, or from its own first byte, to its last. Between requests the
    connection is idle, which is uvicorn's affair. And it can hang up on a client that doesn't read: the ASGI extension
    `ports.http.sse.HANG_UP`.
    """

    window_s: ClassVar[float] = SENDER_WINDOW_S
    window_bytes: ClassVar[int] = SENDER_WINDOW_BYTES
    reader_window_s: ClassVar[float] = READER_WINDOW_S

    _watch: SenderWatch
    _begins: BeginsAtOnce | None = None
    """Of an app that can begin without a task, until the server ends."""
    _at_once: AtOnce | None = None
    """What has begun so and has no task yet."""
    _told: Callable[[], None] | None = None
    """Whom the request at work wants to be called when its client leaves."""
    _hanging_up: asyncio.TimerHandle | None = None
    _idle_since: float | None = None
    """When the last response was sent, while no other request has begun."""
    _idle_timer: asyncio.TimerHandle | None = None
    cycle: Cycle
    """The newest that was read."""
    _at_work: Cycle | None = None
    """Whose app runs or ran last."""
    _refused = False
    """Nothing more of what comes is read."""
    _read_bytes = 0
    """Of the last read."""
    _head_bytes = _head_most = 0
    """Of this head, without the read it began in; and of all reads with something of it."""
    _in_head = True
    _in_body = False
    _begun = 0
    """Requests that began in this read."""
    _known: KnownHead | None = None
    """The head of the last request, where that came as a whole."""
    _wire_bytes = 0
    """What came since the head, and what of it is body."""
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself narrows it
        super().connection_made(transport)
        self._watch = SenderWatch(self.loop, self._too_slow, window_s=self.window_s, window_bytes=self.window_bytes)
        self.flow = WatchedFlow(transport, self._watch)
        self._watch.expect()
        self._begins = getattr(self.app, "at_once", None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.end()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._hanging_up is not None:
            self._hanging_up.cancel()
        super().connection_lost(exc)
        # uvicorn tells the newest that was read, which may wait behind the one whose app runs.
        if self._at_work is not None and not self._at_work.response_complete:
            self._at_work.disconnected = True
            self._at_work.woken()
        told, self._told = self._told, None
        if told is not None:
            told()
        if self._at_work is not None:
            self.go_on(self._at_work)

    def shutdown(self) -> None:
        """From here on every request is a task: the server waits for those, and may cancel them."""
        self._begins = None
        if self._at_work is not None:
            self.go_on(self._at_work)
        super().shutdown()

    def go_on(self, cycle: Cycle) -> None:
        """What has begun without a task needs one."""
        if (begun := self._at_once) is not None and cycle is self._at_work:
            self._at_once = None
            begun.under_way = False
            self._start(cycle, begun.rest, {})

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        between = not (self._in_head or self._in_body)
        if between and self._known is not None and self._recognized(self._known, data):
            return
        self._begun = 0
        at = self.cycle if self._in_body else None
        self._read_bytes = len(data)
        if self._in_head:
            self._head_bytes += len(data)
            self._head_most += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(_TOO_LARGE)
        # Where one body ended in `data` and another began, it is mostly the first one's.
        if at is not None and self._in_body and at is self.cycle:
            self._wire_bytes += len(data)
            framing = self._wire_bytes - self._body_bytes
            if framing > MAX_FRAMING_BYTES + FRAMING_SHARE * self._body_bytes and not self.transport.is_closing():
                self.send_400_response("there is more around the body than in it")
        if between and self._begun == 1:
            self._remember(data)
        self._watch.received(len(data))
        if self._watch.opened is None and self._idle_since is None and self._answered():
            # What belongs to no request, such as empty lines before one, has put an end to the keep-alive's own timer.
            self._watch.expect()

    def _recognized(self, known: KnownHead, data: bytes) -> bool:
        """Whether this is a whole request with a head that is known: then its app runs, as by the parser's callbacks."""
        if not self.cycle.response_complete or self.transport.is_closing():
            return False
        body = known.body_of(data)
        if body is None:
            like = known.like(data)
            if like is None or (body := like.body_of(data)) is None:
                return False
            self._known = known = like
        self._idle_since = None
        self.cycle = cycle = Cycle(
            known.scope.copy(),  # type: ignore[arg-type]  # it was an HTTP scope
            self,
            False,  # it waits for no `100 Continue`, or its head would not be known
            True,  # and is kept alive, for the same reason
        )
        cycle.body = body
        cycle.more_body = False
        if self._begins is None:
            begun = None
        else:
            self._told, self._at_work = None, cycle
            cycle.memory = known.memory
            begun = self._begins(cycle)
        if begun is None:
            self._start(cycle, self.app, known.memory)
        elif begun.under_way:
            self._at_once = begun
        else:
            self._start(cycle, begun.rest, {})
        return True

    def _remember(self, data: bytes) -> None:
        """The head of the one request that began with `data`, if it has ended there, too."""
        cycle = self.cycle
        if not (self._in_head or self._in_body) and cycle.keep_alive:
            scope = {name: member for name, member in cycle.scope.items() if name not in _OF_ONE_REQUEST}
            self._known = known_head(data, self._body_bytes, scope)

    def send_400_response(self, msg: str) -> None:
        """To whoever sends no HTTP, in the envelope of all errors; the connection ends.

        Where an earlier request still waits for its answer, that one is the last thing said: anything else would be taken
        for it, or for a part of it.
        """
        self._refused = True
        cycle, broken = self.cycle, self._in_body
        if broken and self.pipeline:
            # It waits behind others, and it will never be whole.
            self.pipeline.popleft()
            before = self.pipeline[0][0] if self.pipeline else self._at_work
            assert isinstance(before, Cycle), "somebody is waited for, and this protocol makes no others"
            cycle, broken = before, False
            self.cycle = cycle
        if cycle is not None and not cycle.response_complete and not broken:
            self._watch.rest()
            self.flow.pause_reading()
            cycle.keep_alive = False
            return
        if cycle is None or not broken or not cycle.response_started:
            self.transport.write(refusal(msg, self.server_state.default_headers))
        self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head, self._in_body, self._head_bytes, self._head_most = True, False, 0, self._read_bytes
        self._begun += 1
        self._watch.expect()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        # Most heads come in one small read, and are no larger than that.
        if self._head_most > MAX_HEADER_BYTES and self._head_size() > MAX_HEADER_BYTES:
            raise Refused
        # Fields behind the body go nowhere. The request keeps its list, and reading a field costs what it did.
        self.headers = _NOWHERE  # type: ignore[assignment]  # all that is done to it is append
        scope, version = self.scope, self.parser.get_http_version()
        if version not in _VERSIONS:
            raise Refused
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"], scope["raw_path"], scope["query_string"] = target(self.url)
        if version != "1.1":
            scope["http_version"] = version
        self._in_body, self._wire_bytes, self._body_bytes = True, 0, 0
        before = self.cycle
        self.cycle = cycle = Cycle(
            scope, self, self.expect_100_continue, version != "1.0" and self.parser.should_keep_alive()
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _should_upgrade(self) -> bool:
        """No WebSocket, whatever else is installed."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Every client may ask for it, as often as it likes: that is no line of a log."""

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.add(body)
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._watch.rest()
        if not self.cycle.response_complete:
            self.cycle.ended()

    # uvicorn's keep-alive, with a timer that is armed once in its time and not with every response.

    def on_response_complete(self) -> None:
        # Whoever wanted to know has its answer; what hangs on it need not wait for the connection's next request.
        self._told = self._at_once = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._leave()
            return
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
            self._leave()
        else:
            self._idle_timer = self.loop.call_later(left, self._look_if_idle)

    def _leave(self) -> None:
        """Close once all is written, which somebody who never reads would put off for ever."""
        self.transport.close()
        if left := self.transport.get_write_buffer_size():
            self._hanging_up = self.loop.call_later(self.reader_window_s, self._look_if_read, left)

    def _look_if_read(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if before - left < READER_WINDOW_BYTES:
            self.transport.abort()
        else:
            self._hanging_up = self.loop.call_later(self.reader_window_s, self._look_if_read, left)

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
        assert isinstance(cycle, Cycle), "this protocol makes no others"
        self._start(cycle, app, {})

    def _start(self, cycle: Cycle, app: ASGI3Application, memory: HeadMemory) -> None:
        self._told, self._at_work = None, cycle
        extensions: dict[str, Any] = {
            HANG_UP: partial(self._hang_up, cycle),
            HEAD_MEMORY: memory,
            ON_DISCONNECT: self._on_disconnect,
            STREAM_PIECE: cycle.piece,
            WHOLE_REQUEST: cycle.taken,
            WHOLE_RESPONSE: cycle.whole,
        }
        cycle.scope["extensions"] = extensions  # none of them is one of ASGI's own

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

    def _hang_up(self, cycle: Cycle, last: bytes) -> None:
        """End a chunked response with `last` behind what the client has not read yet, waiting for nothing."""
        if cycle.response_complete or self.transport.is_closing():
            return
        cycle.response_complete = True
        cycle.woken()
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        # Closes once all is written, which a client that never reads again would put off for ever.
        self.transport.close()
        self._hanging_up = self.loop.call_later(HANG_UP_S, self.transport.abort)
