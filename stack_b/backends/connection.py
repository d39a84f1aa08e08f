"""One HTTP/1.1 connection to a backend: one request at a time, its answer whole or in pieces as they come.

Why not httpx: ADR 0023. What it does not do is on purpose: no redirects, no proxies, no cookies, no compression, and
nothing is ever sent twice.
"""

import asyncio
import math
import select
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools
from msgspec import Struct

from stack_b.backends.known_answer import KnownAnswers

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a response's head, and of anything else in it that is no content: trailers, the extensions of a chunk."""
MAX_INTERIM: Final = 8
"""Responses such as `100 Continue` before the real one."""
HIGH_WATER_BYTES: Final = 256 * 1024
"""What may lie unread of an answer that is read in pieces; then the backend waits."""
_NEVER: Final = math.inf
LINGER_S: Final = 0.5
"""How long the formal end of an answer may take to follow its content; then the connection is closed."""
_TIMER_SLACK_S: Final = 0.05
_FIRST_FINAL_STATUS: Final = 200
_OK: Final = 200
_GONE: Final = select.POLLIN | getattr(select, "POLLRDHUP", 0)  # macOS says it by POLLIN alone
_KEPT: Final = frozenset({b"content-encoding", b"retry-after"})
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class ExchangeError(Exception):
    """An exchange came to nothing. The words are ours, never the backend's."""


class NotConnected(ExchangeError):
    """There is no connection; nothing was sent."""


class NoRoom(ExchangeError):
    """All connections are in use; nothing was sent."""


class TimedOut(ExchangeError):
    """The backend took longer than it may."""


class TooLarge(ExchangeError):
    """The backend says more than will be read."""


class Broken(ExchangeError):
    """The connection ended, or what came over it is no HTTP."""


class Patience(Struct, frozen=True, kw_only=True):
    """Seconds."""

    first: float
    """Until the answer's first byte, from the moment the request is handed to the connection."""
    next: float
    """Between two reads, as long as somebody wants more."""
    whole: float = _NEVER
    """From the request to the answer's end."""


class Answer(Struct, eq=False):
    """A response under way. Whoever got it calls `release` on every way out; that ends the call if it isn't over."""

    _connection: "Connection"
    _loop: asyncio.AbstractEventLoop
    waiter: asyncio.Future[None] | None = None
    """Of whoever waits for more of it."""
    arrived: Callable[[], None] | None = None
    """Whom it calls when all of it is here, or will never be, instead: see `Connection.send`."""
    error: ExchangeError | None = None
    """What went wrong."""
    # Bytes as they came until there is more than one piece: many tiny pieces must not cost an object each.
    _body: bytes | bytearray = b""
    room: int = HIGH_WATER_BYTES
    """How many of them may be held at once."""
    whole: bool = False
    """All of it is kept for who reads it."""
    status: int = 0
    kept: dict[bytes, bytes] = {}
    """Headers that the caller has a use for, by their name in lower case."""
    framed: bool = False
    """Whether the response says where it ends, other than by the end of the connection."""
    complete: bool = False
    keep_alive: bool = False

    def at_hand(self, limit: int) -> bytes | bytearray | None:
        """The whole content, where all of it has come, as mostly with its head; else it is to be read."""
        return self._body if self.complete and len(self._body) <= limit else None

    def gather(self, limit: int, arrived: Callable[[], None]) -> None:
        """Keep all of it, up to `limit` bytes, for whoever is called then."""
        self.whole, self.room, self.arrived = True, limit, arrived

    @property
    def size(self) -> int:
        """Bytes of it that are held."""
        return len(self._body)

    async def taken_over(self) -> "Answer":
        """The same as from `ask`, for whoever waits for what was sent without waiting. Nobody is called any more."""
        self.arrived = None
        try:
            # Who was cancelled before there was anybody to cancel hears of it here, whatever has come meanwhile.
            await asyncio.sleep(0)
        except BaseException:
            self._connection.abort()
            raise
        return await self._connection.begun(self)

    async def read(self, limit: int) -> bytes | bytearray:
        """The whole content. Raises `TooLarge` beyond `limit` bytes, as soon as that is seen, and `ExchangeError`."""
        self.whole, self.room = True, limit
        self._connection.resume()
        if len(self._body) > limit:
            raise TooLarge("its answer is too large")
        while not self.complete and self.error is None:
            await self.news()
        self.raise_if_failed()
        return self._body

    async def piece(self) -> bytes:
        """What has come since the last call, at least one byte; nothing at the end. Raises `ExchangeError`."""
        while not self._body and not self.complete and self.error is None:
            await self.news()
        if self._body:
            body, self._body = self._body, b""
            self._connection.resume()
            return bytes(body)
        self.raise_if_failed()
        return b""

    def release(self) -> None:
        """Done with it: the connection is free again if the answer was read to its end, and closed at once if not."""
        self._connection.release(self)

    def leave(self) -> None:
        """`release` of an answer whose content is known to be over: its formal end may come a moment later."""
        self._connection.release(self, linger=True)

    # The connection's side.

    def add(self, data: bytes) -> bool:
        """Keep content. False if there is no room for more."""
        held = self._body
        if not held:
            self._body = data
        elif isinstance(held, bytearray):
            held += data
        else:
            self._body = bytearray(held)
            self._body += data
        if len(self._body) > self.room:
            return False
        if not self.whole and self.waiter is not None:
            self.wake()
        return True

    def fail(self, error: ExchangeError) -> None:
        self.error = error
        if self.arrived is not None:
            self.over()
        self.wake()

    def over(self) -> None:
        """Tell whoever wants to be called, once."""
        arrived, self.arrived = self.arrived, None
        if arrived is not None:
            arrived()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def news(self) -> asyncio.Future[None]:
        """What the next of it ends. Who leaves meanwhile has ended it themselves."""
        self.waiter = self._loop.create_future()
        return self.waiter

    def raise_if_failed(self) -> None:
        if self.error is not None:
            raise self.error


class Owner(Protocol):
    """Who is told what becomes of a connection."""

    answers: KnownAnswers
    """Of all its connections."""

    def freed(self, connection: "Connection") -> None: ...

    def lost(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """`ask` one thing at a time. Idle, it closes itself after `idle_s`, or when the backend closes or speaks unasked."""

    def __init__(self, owner: Owner, *, idle_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._idle_s = idle_s
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._poll: Callable[[int], list[tuple[int, int]]] = lambda _: []
        self._came: list[bytes] = []
        """Content of the bytes that are being read."""
        self.on_body = self._came.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._spoiled = False
        self._paused = False
        self._lingering = False
        # Bytes since the last content, and of the head's lines: what a backend may say without saying anything.
        self._empty_talk = 0
        self._interim = 0
        # One timer serves all deadlines of the connection; it is moved only to an earlier moment.
        self._deadline = _NEVER
        self._over = _NEVER
        self._next_s = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, request: bytes, patience: Patience) -> Answer:
        """Send `request` and wait for the head of its answer. Raises `ExchangeError`; a caller who leaves ends the call."""
        return await self.begun(self._sent(request, patience))

    def send(self, request: bytes, patience: Patience, limit: int, arrived: Callable[[], None]) -> Answer:
        """Send `request` and wait for nothing: `arrived` is called when the whole answer is here, at most `limit` bytes, or
        something went wrong. The answer can be `taken_over` by whoever waits after all."""
        answer = self._sent(request, patience)
        answer.gather(limit, arrived)
        return answer

    async def begun(self, answer: Answer) -> Answer:
        """`answer`, once its head is here. Raises like `ask`."""
        try:
            while not answer.status and answer.error is None:
                await answer.news()
            if answer.error is not None:
                answer.raise_if_failed()
        except BaseException:
            self.abort()
            raise
        return answer

    def _sent(self, request: bytes, patience: Patience) -> Answer:
        assert self._answer is None
        assert self._transport is not None
        now = self._loop.time()
        answer = self._answer = Answer(self, self._loop)
        self._empty_talk = self._interim = 0
        self._over, self._next_s = now + patience.whole, patience.next
        self._transport.write(request)
        self._expect(now + patience.first)
        return answer

    @property
    def ended(self) -> bool:
        return self._parser is None

    def usable(self) -> bool:
        """Whether it can take a request now. Asks the kernel, too: the loop may not have heard of an end yet."""
        if self._spoiled or self._transport is None:
            return False
        return not self._transport.is_closing() and not self._poll(0)

    def release(self, answer: Answer, *, linger: bool = False) -> None:
        if answer is not self._answer or (self._lingering and not answer.complete):
            return
        if linger and not answer.complete and not self._spoiled:
            self._lingering = True
            self.resume()
            self._over = self._loop.time() + LINGER_S
            self._expect(self._over)
            return
        self._answer, self._lingering = None, False
        assert self._transport is not None
        unspoiled = answer.complete and answer.keep_alive and not self._spoiled
        # A request that was answered before it was sent whole would be followed by its own rest.
        if unspoiled and not self._transport.is_closing() and not self._transport.get_write_buffer_size():
            if self._paused:
                self.resume()
            self._over = _NEVER
            self._expect(self._loop.time() + self._idle_s)
            self._owner.freed(self)
        else:
            self.abort()

    def give_back(self) -> None:
        """It was not asked for anything."""
        self._owner.freed(self)

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            self._expect(self._loop.time() + self._next_s)

    def fail(self, error: ExchangeError) -> None:
        """End the exchange with `error`, and the connection with it."""
        if self._answer is not None and not self._answer.complete:
            self._answer.fail(error)
        self.abort()

    def abort(self) -> None:
        """Close now, whatever is unsent or unread."""
        self._spoiled = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, without saying so
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), _GONE)
        self._poll = poll.poll

    def data_received(self, data: bytes) -> None:
        if self._spoiled or self._parser is None:
            return
        answer = self._answer
        if answer is None:
            # Nobody asked: whatever this is, the next answer must not be mistaken for it.
            self.abort()
            return
        begins = not self._empty_talk and not answer.status
        if begins and self._recognized(answer, data):
            return
        self._empty_talk += len(data)
        try:
            self._parser.feed_data(data)
            if self._came:
                self._take()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # What came before it is content all the same.
            self._take()
            self._spoiled = True
            if not answer.complete:
                self.fail(Broken("what it answers is not HTTP"))
        if not answer.complete:
            self._still_coming()
        else:
            if begins and answer.keep_alive and answer.status == _OK and not answer.kept:
                self._owner.answers.learn(data, answer.size)
            # Now that the parser has ended: the next request may go out over this connection.
            answer.over()
        if self._spoiled and self._answer is None:
            # Given back by the answer's end, with something behind it.
            self.abort()

    def _recognized(self, answer: Answer, data: bytes) -> bool:
        """Whether this is the whole `answer` with a head that is known: then it is here, as by the parser's callbacks."""
        body = self._owner.answers.body_of(data)
        if body is None or len(body) > answer.room:
            return False
        answer.status, answer.complete, answer.keep_alive = _OK, True, True
        answer.add(body)
        answer.wake()
        answer.over()
        return True

    def _still_coming(self) -> None:
        if self._empty_talk > MAX_HEAD_BYTES:
            self.fail(TooLarge("the head of its answer is too large"))
        elif not self._paused and not self._spoiled:
            self._expect(self._loop.time() + self._next_s)

    def connection_lost(self, exc: Exception | None) -> None:
        answer, self._parser = self._answer, None
        self._spoiled = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Before anybody is told: what they do may fail.
        self._owner.lost(self)
        if answer is not None and not answer.complete:
            if exc is None and answer.status and not answer.framed:
                answer.complete = True
                answer.over()
                answer.wake()
            else:
                answer.fail(Broken("it closed the connection in the middle of its answer"))

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        answer = self._answer
        if answer is None or answer.complete:
            self._spoiled = True

    def on_header(self, name: bytes, value: bytes) -> None:
        answer = self._answer
        if answer is None or answer.complete:
            return
        lowered = name.lower()
        if lowered in _KEPT:
            answer.kept[lowered] = value
        elif lowered in _FRAMING:
            answer.framed = True

    def on_headers_complete(self) -> None:
        answer = self._answer
        assert self._parser is not None
        status = self._parser.get_status_code()
        if answer is None or answer.complete or status < _FIRST_FINAL_STATUS:
            return
        self._empty_talk = 0
        answer.status = status
        answer.wake()

    def _take(self) -> None:
        """What has come of the content: all of one read at once, however many chunks it was sent in."""
        came = self._came
        if not came:
            return
        data = came[0] if len(came) == 1 else b"".join(came)
        came.clear()
        answer = self._answer
        if answer is None or self._spoiled or self._lingering:
            return
        self._empty_talk = 0
        if answer.add(data):
            return
        if answer.whole:
            self.fail(TooLarge("its answer is too large"))
        elif not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
            self._expect(_NEVER)
            answer.wake()

    def on_message_complete(self) -> None:
        if self._came:
            self._take()
        answer = self._answer
        assert self._parser is not None
        if answer is None or answer.complete or self._spoiled:
            return
        if not answer.status:
            self._interim += 1
            answer.framed = False
            answer.kept.clear()
            if self._interim > MAX_INTERIM:
                self.fail(Broken("it says only that it will answer"))
            return
        answer.complete = True
        answer.keep_alive = self._parser.should_keep_alive()
        if answer.waiter is not None:
            answer.wake()
        if self._lingering:
            self.release(answer)

    # The one timer.

    def _expect(self, at: float) -> None:
        """Something must happen before `at`, by the loop's clock."""
        if at > self._over:
            at = self._over
        self._deadline = at
        if self._timer is not None:
            if self._timer.when() <= at + _TIMER_SLACK_S:
                return
            self._timer.cancel()
            self._timer = None
        if at < _NEVER:
            self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline > self._loop.time() + _TIMER_SLACK_S:
            self._expect(self._deadline)
        elif self._answer is None:
            self.abort()
        elif not self._answer.complete:
            self.fail(TimedOut("it did not answer in time"))
