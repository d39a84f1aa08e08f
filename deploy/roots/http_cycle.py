"""One request and its response on a connection: uvicorn's, and what our server offers beyond ASGI."""

import asyncio
from collections.abc import Collection
from functools import lru_cache
from logging import Logger
from typing import Any, Final, Protocol
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_RE, STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from ports.http.extensions import NO_FIELDS, Fields, HeadMemory

_LINE_END: Final = b"\r\n"
_CLOSE: Final = b"connection: close\r\n\r\n"
_MAX_KNOWN_URL: Final = 256
_OURS: Final = frozenset({b"connection", b"transfer-encoding"})
_WITHOUT_BODY: Final = frozenset({204, 304})


class Refused(Exception):
    """Raised inside the parser's callback, where it ends the connection with 400."""


class Owner(Protocol):
    """The connection's protocol."""

    transport: Any
    flow: FlowControl
    logger: Logger
    server_state: ServerState

    def on_response_complete(self) -> None: ...

    def go_on(self, cycle: "Cycle") -> None: ...


class Cycle(RequestResponseCycle):
    """uvicorn's, with less to be made for each request, and the ASGI extensions `WHOLE_REQUEST` and `WHOLE_RESPONSE`.

    Behind a known head it is a `ports.http.extensions.Turn`, too."""

    memory: HeadMemory
    # As each one begins.
    access_log = False
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding = None
    expected_content_length = 0
    _event: asyncio.Event | None = None
    _taken = False
    """The body was, as a whole."""

    def __init__(  # uvicorn's sets twenty attributes, most of them to the same values
        self,
        scope: HTTPScope,
        owner: Owner,
        expect_100_continue: bool,
        keep_alive: bool,
    ) -> None:
        self.scope = scope
        self.owner = owner
        self.transport = owner.transport
        self.flow = owner.flow
        self.logger = owner.logger
        self.default_headers = owner.server_state.default_headers
        self.waiting_for_100_continue = expect_100_continue
        self.keep_alive = keep_alive
        self.on_response = owner.on_response_complete
        self.body: bytes | bytearray = b""  # type: ignore[assignment]  # mostly it is one piece

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]  # made for those who wait
        if self._event is None:
            self._event = asyncio.Event()
        return self._event

    def add(self, data: bytes) -> None:
        """A piece of the body."""
        if not self.body:
            self.body = data
        else:
            if not isinstance(self.body, bytearray):
                # Many tiny pieces must not be copied each time.
                self.body = bytearray(self.body)
            self.body += data
        self.woken()

    def ended(self) -> None:
        """The body is whole."""
        self.more_body = False
        self.woken()

    def go_on(self) -> None:
        self.owner.go_on(self)

    def woken(self) -> None:
        if self._event is not None:
            self._event.set()

    async def receive(self) -> ASGIReceiveEvent:
        if (self.body or not self.more_body) and self._event is None and not self._taken:
            # There was something before anybody waited.
            self.message_event.set()
        return await super().receive()

    def taken(self) -> bytes | None:
        """The body, where all of it is here; what is received afterwards comes behind it."""
        if self.more_body or self._taken or self._event is not None:
            return None
        body, self.body = self.body, b""
        self._taken = True
        self.waiting_for_100_continue = False
        if self.flow.read_paused:
            self.flow.resume_reading()
        return bytes(body)

    def whole(self, status: int, fields: Fields, body: bytes) -> bool:
        if self.response_started or self.disconnected or self.flow.write_paused or self.scope["method"] == "HEAD":
            return False
        head = self._head(*fields)
        if head is None:
            return False
        self.response_started = True
        self.waiting_for_100_continue = False
        end = _LINE_END if self.keep_alive else _CLOSE
        self._ended(b"".join((STATUS_LINE[status], head, end, body)))
        return True

    def _ended(self, last: bytes) -> None:
        self.response_complete = True
        self.transport.write(last)
        self.woken()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    async def send(self, message: ASGISendEvent) -> None:
        """uvicorn's, without a look at each header, for a stream: its length isn't said, and its pieces come one by one."""
        if self.flow.write_paused or self.disconnected or self.scope["method"] == "HEAD":
            await super().send(message)
        elif message["type"] == "http.response.start":
            if not self._begun(message["status"], list(message["headers"])):
                await super().send(message)
        elif message["type"] != "http.response.body" or not self.piece(
            message["body"], not message.get("more_body", False)
        ):
            await super().send(message)

    def piece(self, body: bytes, last: bool) -> bool:
        if self.flow.write_paused or self.disconnected or not self.chunked_encoding or self.response_complete:
            return False
        framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        if last:
            self._ended(framed + b"0\r\n\r\n")
        else:
            self.transport.write(framed)
        return True

    def _begun(self, status: int, headers: Collection[tuple[bytes, bytes]]) -> bool:
        """Whether the head of a stream was sent. Of what has a length, or has no body at all, it is not."""
        if self.response_started or status in _WITHOUT_BODY:
            return False
        names, values = zip(*headers, strict=True) if headers else NO_FIELDS
        head = None if b"content-length" in names else self._head(names, values)
        if head is None:
            return False
        self.response_started = self.chunked_encoding = True
        self.waiting_for_100_continue = False
        end = _LINE_END if self.keep_alive else _CLOSE
        self.transport.write(b"%b%btransfer-encoding: chunked\r\n%b" % (STATUS_LINE[status], head, end))
        return True

    def _head(self, names: tuple[bytes, ...], values: tuple[bytes, ...]) -> bytes | None:
        """The fields of a response; None where that takes a longer look."""
        for name, value in reversed(self.default_headers):
            names, values = (name, *names), (value, *values)
        lines = _lines(names)
        if lines is None:
            return None
        # A line break inside of a field would make another one of it: that is uvicorn's to refuse.
        said = b"".join(values)
        if said.find(b"\r") >= 0 or said.find(b"\n") >= 0 or said.find(b"\0") >= 0:
            return None
        return lines % values


def target(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, raw path and query. What is asked for is mostly the same. Raises `Refused`."""
    return _known_target(url) if len(url) <= _MAX_KNOWN_URL else _split(url)


def _split(url: bytes) -> tuple[str, bytes, bytes]:
    if b"#" in url:
        raise Refused  # a fragment is the client's own; whoever checks paths before us may read on behind it
    parts = httptools.parse_url(url)
    raw = parts.path
    path = raw.decode("ascii")
    return unquote(path) if "%" in path else path, raw, parts.query or b""


_known_target = lru_cache(maxsize=256)(_split)


@lru_cache(maxsize=256)
def _lines(names: tuple[bytes, ...]) -> bytes | None:
    """Header fields of these names, to be filled with their values; None where it takes more than that to send them."""
    if any(map(HEADER_RE.search, names)) or not _OURS.isdisjoint(names):
        return None
    return b"".join(b"%b: %%b\r\n" % name.replace(b"%", b"%%") for name in names)
