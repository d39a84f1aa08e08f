"""A connection that sends slower than it must is closed; one that waits for us is not. Over a real socket."""

import anyio
import httpx
import pytest
from anyio.abc import SocketStream

from deploy.roots.http_protocol import BoundedProtocol
from ports.http.body import Receive
from ports.http.edge import Scope, Send
from ports.http.limits import COMMON, SENDER_WINDOW_BYTES, SENDER_WINDOW_S
from tests.support.http_server import served

pytestmark = [pytest.mark.anyio]

WINDOW_S = 0.5
# Long enough for a watch that should have stopped to have looked, twice.
LONG_S = 2.5 * WINDOW_S
PAUSE_S = WINDOW_S / 20


class Hasty(BoundedProtocol):
    """The product's protocol, with less patience."""

    window_s = WINDOW_S
    window_bytes = 1_024


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the size of the body; to a path with `late`, begin to read it late."""
    if "late" in scope["path"]:
        await passes(LONG_S)
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    text = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


async def slow_answer(scope: Scope, receive: Receive, send: Send) -> None:
    """An event stream that is silent for long."""
    assert scope["type"] == "http"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"first ", "more_body": True})
    with anyio.move_on_after(LONG_S):
        await receive()
        return
    await send({"type": "http.response.body", "body": b"last"})


async def passes(seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await anyio.sleep_forever()


async def connected(url: str) -> SocketStream:
    host, port = url.removeprefix("http://").split(":")
    return await anyio.connect_tcp(host, int(port))


async def heard(stream: SocketStream, text: bytes) -> bool:
    """Whether `text` comes before the end."""
    said = b""
    while text not in said:
        try:
            said += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False
    return True


async def closed_while_dripping(stream: SocketStream, drop: bytes) -> bool:
    """Send `drop` again and again, until the other side closes. False when it answers first."""
    try:
        while True:
            if drop:
                await stream.send(drop)
            with anyio.move_on_after(PAUSE_S):
                await stream.receive()
                return False
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return True


def test_the_product_has_the_limits_of_the_contract() -> None:
    assert (BoundedProtocol.window_s, BoundedProtocol.window_bytes) == (SENDER_WINDOW_S, SENDER_WINDOW_BYTES)
    assert (SENDER_WINDOW_S, COMMON["min_request_bytes_per_s"]) == (30, 1_024)


class TestClosed:
    @pytest.mark.parametrize(
        ("said", "drop"),
        [
            (b"", b""),
            (b"", b"\r\n"),
            (b"GET / HT", b""),
            (b"GET / HTTP/1.1\r\nhost: x\r\n", b"x-more: 1\r\n"),
            (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n", b"x"),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ],
        ids=["idle", "empty lines", "half a line", "headers", "body", "chunks"],
    )
    async def test_a_request_that_does_not_get_complete(self, said: bytes, drop: bytes) -> None:
        with anyio.fail_after(10):
            async with served(echo_length, protocol=Hasty) as url, await connected(url) as stream:
                if said:
                    await stream.send(said)

                assert await closed_while_dripping(stream, drop)

    @pytest.mark.parametrize("drop", [b"\r\n", b"GET / HTTP/1.1\r\nx-more: 1\r\n"], ids=["empty lines", "headers"])
    async def test_a_second_request_that_does_not_get_complete(self, drop: bytes) -> None:
        with anyio.fail_after(10):
            async with served(echo_length, protocol=Hasty) as url, await connected(url) as stream:
                await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert await heard(stream, b"\r\n\r\n0")
                await stream.send(drop)

                assert await closed_while_dripping(stream, b"")

    async def test_a_body_that_trickles_in_after_its_answer(self) -> None:
        async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        with anyio.fail_after(10):
            async with served(refuse, protocol=Hasty) as url, await connected(url) as stream:
                await stream.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
                assert await heard(stream, b"413")

                assert await closed_while_dripping(stream, b"x")


class TestLeftAlone:
    async def test_a_slow_answer(self) -> None:
        with anyio.fail_after(10):
            async with served(slow_answer, protocol=Hasty) as url, httpx.AsyncClient(base_url=url) as client:
                answer = await client.get("/")

        assert answer.text == "first last"

    async def test_an_empty_line_sent_behind_a_request_does_not_end_its_slow_answer(self) -> None:
        with anyio.fail_after(10):
            async with served(slow_answer, protocol=Hasty) as url, await connected(url) as stream:
                await stream.send(b"GET / HTTP/1.0\r\nhost: x\r\n\r\n")
                assert await heard(stream, b"first")
                await stream.send(b"\r\n")

                assert await heard(stream, b"last")

    async def test_an_upload_that_takes_several_windows(self) -> None:
        async with served(echo_length, protocol=Hasty) as url, await connected(url) as stream:
            with anyio.fail_after(10):
                await stream.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 40960\r\n\r\n")
                for _ in range(40):
                    await stream.send(b"x" * 1_024)
                    await passes(LONG_S / 40)

                assert await heard(stream, b"40960")

    async def test_a_big_body_that_we_do_not_read_yet(self) -> None:
        with anyio.fail_after(10):
            async with served(echo_length, protocol=Hasty) as url, httpx.AsyncClient(base_url=url) as client:
                answer = await client.post("/late", content=b"x" * 1_000_000)

        assert answer.text == "1000000"

    async def test_a_client_that_waits_for_our_word_to_go_on(self) -> None:
        with anyio.fail_after(10):
            async with served(echo_length, protocol=Hasty) as url, await connected(url) as stream:
                await stream.send(
                    b"POST /late HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n"
                )
                assert await heard(stream, b"100 Continue")
                await stream.send(b"abc")

                assert await heard(stream, b"\r\n\r\n3")

    async def test_an_idle_connection_between_requests(self) -> None:
        request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
        with anyio.fail_after(10):
            async with served(echo_length, protocol=Hasty) as url, await connected(url) as stream:
                await stream.send(request)
                assert await heard(stream, b"\r\n\r\n0")
                await passes(LONG_S)
                await stream.send(request)

                assert await heard(stream, b"200 OK")
