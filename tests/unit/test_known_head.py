"""A head that was sent before is known by its bytes, and by nothing less."""

from typing import Any, Final

import anyio
import pytest

from deploy.roots import http_protocol
from deploy.roots.known_head import KnownHead, known_head
from ports.http.body import Receive
from ports.http.edge import App, Scope, Send
from ports.http.known_length import MAX_BYTES
from tests.support.http_server import served

HEAD: Final = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX-Last: 1\r\n\r\n"


def scope_of(*more: tuple[bytes, bytes], length: int = 5, method: str = "POST") -> dict[str, Any]:
    headers = [(b"host", b"a"), (b"content-length", b"%d" % length), (b"x-last", b"1"), *more]
    return {"type": "http", "method": method, "headers": headers}


def known() -> KnownHead:
    found = known_head(HEAD % 5 + b"hello", 5, scope_of())
    assert found is not None
    return found


def test_the_same_head_is_known_with_another_body_of_its_length() -> None:
    assert known().body_of(HEAD % 5 + b"world") == b"world"


@pytest.mark.parametrize(
    "data",
    [
        HEAD % 5 + b"worl",
        HEAD % 5 + b"world!",
        HEAD % 5,
        HEAD[1:] % 5 + b"worlds",
        HEAD.replace(b"X-Last: 1", b"X-Last: 2") % 5 + b"world",
        (HEAD % 5 + b"world") * 2,
    ],
)
def test_anything_else_is_not(data: bytes) -> None:
    assert known().body_of(data) is None
    assert known().like(data) is None


def test_a_head_that_differs_in_its_length_is_alike_and_says_the_other_length() -> None:
    data = HEAD % 12 + b"hello, world"
    like = known().like(data)

    assert like is not None
    assert like.body_of(data) == b"hello, world"
    assert dict(like.scope["headers"]) == {b"host": b"a", b"content-length": b"12", b"x-last": b"1"}
    assert dict(known().scope["headers"])[b"content-length"] == b"5"


@pytest.mark.parametrize(
    "digits", [b"", b"+5", b"-5", b"5 ", b"0x5", b"5,5", b"5\r\nContent-Length: 6", b"\xb2", b"9" * 10]
)
def test_a_length_that_is_no_plain_number_is_the_parsers_to_judge(digits: bytes) -> None:
    assert known().like((HEAD % 5).replace(b": 5\r", b": %b\r" % digits) + b"hello") is None


@pytest.mark.parametrize(
    ("data", "scope"),
    [
        (HEAD % 5 + b"hello\r\n", scope_of()),
        (b"\r\n" + HEAD % 5 + b"hello", scope_of()),
        (b"\r\n\r\n" + HEAD % 5 + b"hello", scope_of()),
        (HEAD % 5 + b"hello", scope_of(method="PUT")),
        (HEAD % 5 + b"hello", scope_of((b"transfer-encoding", b"chunked"))),
        (HEAD % 5 + b"hello", scope_of((b"upgrade", b"h2c"))),
        (HEAD % 5 + b"hello", scope_of((b"expect", b"100-continue"))),
        (HEAD % 5 + b"hello", scope_of((b"content-length", b"5"))),
        ((HEAD % 5).replace(b": a", b": " + b"a" * MAX_BYTES) + b"hello", scope_of()),
        ((HEAD % 5).replace(b"Content-Length", b"X-Length") + b"hello", scope_of()),
    ],
)
def test_what_is_no_plain_request_by_itself_is_not_kept(data: bytes, scope: dict[str, Any]) -> None:
    found = known_head(data, 5, scope)

    # A line before it belongs to what is compared: it is there again, or it isn't the same.
    assert found is None or found.body_of(data) == b"hello"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The heads that the parser read."""
    seen: list[bytes] = []
    before = http_protocol.BoundedProtocol.on_headers_complete

    def on_headers_complete(self: http_protocol.BoundedProtocol) -> None:
        seen.append(self.url)
        before(self)

    monkeypatch.setattr(http_protocol.BoundedProtocol, "on_headers_complete", on_headers_complete)
    return seen


def telling(bodies: list[bytes]) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        bodies.append(body)
        assert int(dict(scope["headers"])[b"content-length"]) == len(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


@pytest.mark.anyio
async def test_over_a_connection_each_request_gets_its_own_body_whoever_reads_its_head(parsed: list[bytes]) -> None:
    bodies: list[bytes] = []
    pieces = [
        (HEAD % 5 + b"first",),
        (HEAD % 6 + b"second",),
        (HEAD % 5 + b"third",),
        # Known by now; and then all that must not be taken for it.
        (HEAD % 6 + b"fou", b"rth"),
        (HEAD[:20] % (), HEAD[20:] % 5 + b"fifth"),
        (HEAD % 5 + b"sixth" + HEAD % 7 + b"seventh",),
        (HEAD % 6 + b"eighth",),
        ((HEAD % 5).replace(b"X-Last: 1", b"X-Last: 2") + b"ninth",),
    ]
    async with served(telling(bodies)) as url:
        host, port = url.removeprefix("http://").split(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            for sent in pieces:
                due = len(bodies) + sum(piece.count(b"POST") for piece in sent)
                for piece in sent:
                    await stream.send(piece)
                    await anyio.wait_all_tasks_blocked()
                with anyio.fail_after(5):
                    while len(bodies) < due:
                        await stream.receive()

    assert bodies == [b"first", b"second", b"third", b"fourth", b"fifth", b"sixth", b"seventh", b"eighth", b"ninth"]
    assert len(parsed) < len(bodies)


@pytest.mark.anyio
async def test_what_a_framework_keeps_of_a_request_is_not_there_for_the_next(parsed: list[bytes]) -> None:
    kept: list[bool] = []
    bodies: list[bytes] = []
    tells = telling(bodies)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        kept.append("begun" in state)
        state["begun"] = True
        await tells(scope, receive, send)

    async with served(app) as url:
        host, port = url.removeprefix("http://").split(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            for due in (1, 2, 3):
                await stream.send(HEAD % 5 + b"hello")
                with anyio.fail_after(5):
                    while len(bodies) < due:
                        await stream.receive()

    assert kept == [False, False, False]
    assert len(parsed) < 3
