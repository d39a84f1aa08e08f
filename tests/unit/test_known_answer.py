"""A backend's answer whose head is known by its bytes is what the parser would have made of it; nothing less is known."""

import asyncio
from functools import partial
from typing import Any, Final

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from ports.http.known_length import MAX_BYTES
from stack_b.backends.connection import Connection, Owner, Patience
from stack_b.backends.known_answer import UNUSED, KnownAnswers
from stack_b.backends.pool import Pool
from tests.support.rough_backend import Stall, rough_backend, whole

HEAD: Final = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: %d\r\nServer: a\r\n\r\n"
PATIENCE: Final = Patience(first=5, next=5)


def known(head: bytes = HEAD % 5) -> KnownAnswers:
    answers = KnownAnswers()
    answers.learn(head + b"hello", 5)
    return answers


@pytest.mark.parametrize("body", [b"world", b"hello, world", b""])
def test_the_same_head_is_known_whatever_its_length(body: bytes) -> None:
    assert known().body_of(HEAD % len(body) + body) == body


@pytest.mark.parametrize(
    "data",
    [
        HEAD % 5 + b"worl",
        HEAD % 5 + b"world!",
        HEAD % 5,
        b"",
        HEAD[1:] % 5 + b"worlds",
        HEAD.replace(b"now", b"new") % 5 + b"world",
        HEAD.replace(b"Server: a", b"Server: b") % 5 + b"world",
        (HEAD % 5 + b"world") * 2,
        *(
            (HEAD % 5).replace(b": 5\r", b": %b\r" % digits) + b"hello"
            for digits in (b"", b"+5", b"-5", b"5 ", b"0x5", b"5,5", b"5\r\nContent-Length: 6", b"\xb2", b"9" * 10)
        ),
    ],
)
def test_anything_else_is_the_parsers(data: bytes) -> None:
    assert known().body_of(data) is None


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n" + HEAD % 5,
        HEAD % 6,
        (HEAD % 5).replace(b"HTTP/1.1", b"HTTP/1.0"),
        (HEAD % 5).replace(b"200 OK", b"206 OK"),
        (HEAD % 5).replace(b"Server", b"Content-Length: 5\r\nServer"),
        (HEAD % 5).replace(b"Server", b"Transfer-Encoding: chunked\r\nServer"),
        (HEAD % 5).replace(b"Content-Length", b"X-Length"),
        (HEAD % 5).replace(b": a", b": " + b"a" * MAX_BYTES),
    ],
)
def test_a_head_that_says_more_than_that_is_not_kept(head: bytes) -> None:
    assert known(head).body_of(head + b"hello") is None


def test_of_the_rest_of_an_answer_nothing_is_learned() -> None:
    answers = KnownAnswers()
    rest = HEAD % 100 + b"hello"
    for body_bytes in (len(rest), len(rest) + 3, 100):
        answers.learn(rest, body_bytes)

    assert answers.body_of(HEAD % 5 + b"hello") is None


def test_what_can_not_be_learned_takes_nothing_of_what_is_known() -> None:
    answers = known()
    for _ in range(3):
        answers.learn(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 5)

    assert answers.body_of(HEAD % 5 + b"world") == b"world"


def test_heads_of_which_none_comes_again_are_seldom_learned() -> None:
    answers = known()
    other = HEAD.replace(b"now", b"new") % 5 + b"world"
    learned = 0
    for _ in range(UNUSED):
        answers.learn(other, 5)
        learned += answers.body_of(other) is not None

    assert learned == 0
    answers.learn(other, 5)
    assert answers.body_of(other) == b"world"
    # It came again: so the next one is learned at once.
    answers.learn(HEAD % 5 + b"hello", 5)
    assert answers.body_of(HEAD % 5 + b"hello") == b"hello"


class Unknowing(KnownAnswers):
    """Everything is the parser's."""

    def body_of(self, _: bytes, /) -> bytes | None:
        return None


class Line(asyncio.Transport):
    """What is written goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _NO_SOCKET if name == "socket" else default

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self._closed

    def abort(self) -> None:
        self._closed = True

    def get_write_buffer_size(self) -> int:
        return 0


class _NoSocket:
    def fileno(self) -> int:
        return 0


_NO_SOCKET: Final = _NoSocket()


class Said(Struct, frozen=True):
    """What came of one answer, and of the connection by it."""

    status: int
    body: bytes
    kept: dict[bytes, bytes]
    complete: bool
    keep_alive: bool
    error: str
    called: int
    free: bool


def heard(loop: asyncio.AbstractEventLoop, answers: KnownAnswers, pieces: list[list[bytes]], limit: int) -> list[Said]:
    class Owning:
        def __init__(self) -> None:
            self.answers = answers
            self.free = 0

        def freed(self, _: Connection) -> None:
            self.free += 1

        def lost(self, _: Connection) -> None:
            pass

    owner, found = Owning(), list[Said]()
    line, connection = _connected(owner, loop)
    for answer_pieces in pieces:
        if line.is_closing():
            line, connection = _connected(owner, loop)
        called: list[int] = []
        free = owner.free
        answer = connection.send(b"", PATIENCE, limit, partial(called.append, 1))
        for piece in answer_pieces:
            connection.data_received(piece)
        body = answer.at_hand(limit)
        answer.release()
        found.append(
            Said(
                answer.status, bytes(body or b""), answer.kept, answer.complete, answer.keep_alive,
                repr(answer.error), len(called), owner.free > free,
            )
        )  # fmt: skip
    return found


def _connected(owner: Owner, loop: asyncio.AbstractEventLoop) -> tuple[Line, Connection]:
    line, connection = Line(), Connection(owner, idle_s=5, loop=loop)
    connection.connection_made(line)
    return line, connection


FIELDS: Final = [
    b"Date: now", b"Date: new", b"server: a", b"Connection: close", b"Connection: keep-alive", b"Retry-After: 1",
    b"Content-Encoding: gzip", b"Transfer-Encoding: chunked", b"Content-Length: 3", b"content-length:  3", b"X:",
]  # fmt: skip
STARTS: Final = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 404 No", b"HTTP/1.1 204 No",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1 20 OK",
]  # fmt: skip
BODIES: Final = [b"abc", b"abc", b"{}", b"", b"3\r\nabc\r\n0\r\n\r\n", b"abc\r\n\r\nabc", b"HTTP/1.1 200 OK\r\n\r\n"]


@st.composite
def a_head(draw: st.DrawFn) -> bytes:
    """But for a length, mostly."""
    fields = draw(st.one_of(st.just([b"Date: now"]), st.lists(st.sampled_from(FIELDS), max_size=3)))
    place = draw(st.integers(0, len(fields)))
    return b"\r\n".join([draw(st.sampled_from(STARTS)), *fields[:place], b"{length}", *fields[place:], b"", b""])


@st.composite
def answers_of_one(draw: st.DrawFn) -> list[list[bytes]]:
    """A backend's answers, which begin in one or two ways; in one piece mostly."""
    heads, found = draw(st.lists(a_head(), min_size=1, max_size=2)), list[list[bytes]]()
    for head in draw(st.lists(st.sampled_from(heads), min_size=2, max_size=6)):
        body = draw(st.sampled_from(BODIES))
        more = draw(st.sampled_from([0] * 8 + [-1, 1]))
        length = b"Content-Length: %d" % max(0, len(body) + more) if draw(st.integers(0, 9)) else b"X: y"
        data = head.replace(b"{length}", length) + body
        at = draw(st.one_of(st.just(0), st.integers(0, len(data))))
        found.append([piece for piece in (data[:at], data[at:]) if piece])
    return found


def test_it_makes_no_difference_whether_heads_are_known() -> None:
    loop = asyncio.new_event_loop()

    @settings(max_examples=500)
    @given(answers_of_one(), st.sampled_from([2, 3, 1_000]))
    @example([[HEAD % 5 + b"hello"], [HEAD % len(HEAD % 5 + b"hello"), HEAD % 5 + b"hello"]], 1_000)
    @example([[HEAD % 5 + b"hello"], [HEAD % 6 + b"hello!"]], 5)
    def makes_none(pieces: list[list[bytes]], limit: int) -> None:
        assert heard(loop, KnownAnswers(), pieces, limit) == heard(loop, Unknowing(), pieces, limit)

    try:
        makes_none()
    finally:
        loop.close()


@pytest.mark.anyio
async def test_over_a_connection_the_parser_reads_what_is_not_known_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[int] = []
    before = Connection.on_headers_complete

    def on_headers_complete(self: Connection) -> None:
        parsed.append(1)
        before(self)

    monkeypatch.setattr(Connection, "on_headers_complete", on_headers_complete)
    bodies = [b"first", b"the second", b"third", b"fourth", b"fifth"]
    dates = ["a", "a", "a", "b", "b"]
    scripts = [[whole(body, date=date)] for body, date in zip(bodies, dates, strict=True)]
    async with rough_backend(*scripts, [Stall()]) as rough:
        host, _, port = rough.url.removeprefix("http://").removesuffix("/v1").partition(":")

        async def dial(protocol: Any) -> Connection:
            _, connection = await asyncio.get_running_loop().create_connection(protocol, host, int(port))
            assert isinstance(connection, Connection)
            return connection

        pool = Pool(dial, connect_s=5)
        heard_bodies = []
        with anyio.fail_after(10):
            for _ in bodies:
                answer = await pool.ask(b"GET / HTTP/1.1\r\n\r\n", PATIENCE)
                heard_bodies.append(bytes(await answer.read(1_000)))
                answer.release()
        await pool.aclose()

    assert heard_bodies == bodies
    assert rough.connections == 1
    assert len(parsed) == 2, "the first of each date"
