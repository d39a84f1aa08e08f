"""Backends that stall, drip, break off, lie and flood, over real sockets: what the gateway's client makes of each."""

import asyncio
import json
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.http.sse_decoder import MAX_EVENT_BYTES
from ports.messages import Json
from stack_b.backends import dial, openai_compatible
from stack_b.backends.connection import HIGH_WATER_BYTES
from stack_b.backends.dial import tls_context
from stack_b.backends.openai_compatible import MAX_ANSWER_BYTES, OpenAiCompatible
from stack_b.chunks import written_out
from tests.support.pki import Authority, new_authority
from tests.support.rough_backend import (
    LAST_CHUNK,
    OK,
    SSE,
    Cut,
    Drip,
    Flood,
    RoughBackend,
    Stall,
    Step,
    chunk,
    event,
    rough_backend,
    whole,
)

pytestmark = [pytest.mark.anyio]

ASKED: Any = {"messages": [{"role": "user", "content": "hello"}]}
SECRET = "sk-live-0a1b2c3d4e5f60718293a4b5c6d7e8f9"
ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
TOKEN = b'{"id":"c","choices":[{"index":0,"delta":{"content":"tok"}}]}'
GOOD = whole(ANSWER)
SOON = timedelta(milliseconds=300)
MIB = 1 << 20


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Production's loop, whose transports are not asyncio's; and asyncio's, on which the other tests run."""
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def before(*scripts: list[Step], **settings: Any) -> AsyncIterator[tuple[RoughBackend, OpenAiCompatible]]:
    """A backend that does what the scripts say, and its client."""
    with anyio.fail_after(30):
        async with rough_backend(*scripts) as rough:
            client = OpenAiCompatible(name="up", base_url=rough.url, api_key=SECRET, **settings)
            try:
                yield rough, client
            finally:
                await client.aclose()


async def streamed(client: OpenAiCompatible, got: list[dict[str, Json]] | None = None) -> list[dict[str, Json]]:
    """The parts of a stream; in `got` also those before its failure."""
    parts = [] if got is None else got
    async for part in client.stream("m", ASKED, 5):
        parts.extend(written_out(part))
    return parts


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes no connection and refuses none: its queue is full and nobody accepts."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def unknown(error: AgentOSError) -> bool:
    """Whether it says that the backend may have worked."""
    return error.details.get("outcome") == "unknown"


class TestWholeAnswers:
    @pytest.mark.parametrize(
        "script",
        [
            [GOOD],
            [Drip(GOOD)],
            [OK + b"transfer-encoding: chunked\r\n\r\n" + chunk(ANSWER[:9]) + chunk(ANSWER[9:]) + LAST_CHUNK],
            [OK + b"transfer-encoding: chunked\r\n\r\n", Drip(chunk(ANSWER[:9]) + chunk(ANSWER[9:]) + LAST_CHUNK)],
            [b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD],
            [OK + b"\r\n" + ANSWER, Cut()],
            [b"HTTP/1.0 200 OK\r\n\r\n" + ANSWER, Cut()],
        ],
        ids=["whole", "dripped", "in chunks", "in dripped chunks", "after an interim one", "until the end", "HTTP/1.0"],
    )
    async def test_an_answer_is_read_however_it_is_framed(self, script: list[Step]) -> None:
        async with before(script) as (_, client):
            answer = await client.chat("m", ASKED, 5)

        assert answer == json.loads(ANSWER)

    async def test_answers_one_after_the_other_share_a_connection(self) -> None:
        async with before([GOOD]) as (rough, client):
            for _ in range(5):
                await client.chat("m", ASKED, 5)

        assert rough.connections == 1

    @pytest.mark.parametrize(
        ("script", "code", "may_have_worked"),
        [
            ([Cut()], "upstream_error", True),
            ([Cut(reset=True)], "upstream_error", True),
            ([whole(ANSWER, length=len(ANSWER) + 1), Cut()], "upstream_error", True),
            ([OK + b"transfer-encoding: chunked\r\n\r\n" + chunk(ANSWER), Cut()], "upstream_error", True),
            ([OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n"], "upstream_error", True),
            ([OK + b"transfer-encoding: chunked\r\n\r\n-5\r\n"], "upstream_error", True),
            ([OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"], "upstream_error", True),
            ([OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"], "upstream_error", True),
            ([OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"], "upstream_error", True),
            ([OK + b"content-length: -1\r\n\r\n"], "upstream_error", True),
            ([b"SSH-2.0-OpenSSH_9.9\r\n"], "upstream_error", True),
            (
                [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
                "upstream_error",
                True,
            ),
            ([b"HTTP/1.1 100 Continue\r\n\r\n" * 9], "upstream_error", True),
            ([whole(ANSWER, length=len(ANSWER) - 1)], "upstream_error", True),
            ([whole(ANSWER, content_encoding="gzip")], "upstream_error", True),
            ([whole(b"[" * 100_000)], "upstream_error", True),
            ([whole(b'{"choices":' + b"[" * 100_000)], "upstream_error", True),
            ([whole(b"\xff\xfe{}")], "upstream_error", True),
            ([whole(b"")], "upstream_error", True),
            ([whole(b'{"a":"\\ud800"}')], "upstream_error", True),
            ([whole(b'{"a":"\xff"}')], "upstream_error", True),
            ([whole(b"", status="204 No Content")], "upstream_error", False),
        ],
    )
    async def test_what_is_no_answer_is_an_error_and_the_connection_is_not_used_again(
        self, script: list[Step], code: str, *, may_have_worked: bool
    ) -> None:
        async with before(script, [GOOD]) as (_, client):
            with pytest.raises(Unavailable) as failed:
                await client.chat("m", ASKED, 5)
            after = await client.chat("m", ASKED, 5)

        assert failed.value.code == code
        assert unknown(failed.value) is may_have_worked
        assert after == json.loads(ANSWER)

    async def test_what_comes_behind_an_answer_is_never_the_next_one(self) -> None:
        smuggled = GOOD.replace(b'"hi"', b'"no"')
        async with before([GOOD + smuggled], [GOOD]) as (rough, client):
            answers = [await client.chat("m", ASKED, 5) for _ in range(2)]

        assert answers == [json.loads(ANSWER)] * 2
        assert rough.connections == 2

    @pytest.mark.parametrize(
        "script",
        [[Stall()], [GOOD[:20], Stall()], [GOOD[:-1], Stall()]],
        ids=["at once", "in the head", "in the body"],
    )
    async def test_one_that_stalls_is_given_up_and_left(self, script: list[Step]) -> None:
        async with before(script, timeout=SOON) as (rough, client):
            with pytest.raises(Unavailable) as failed:
                await client.chat("m", ASKED, 5)
            await rough.gone.wait()

        assert failed.value.code == "upstream_timeout"
        assert unknown(failed.value)

    async def test_the_listing_of_models_has_a_time_in_all_however_busily_it_drips(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_compatible, "_MODELS_TIMEOUT_S", 0.3)
        head = OK + b"transfer-encoding: chunked\r\n\r\n"
        async with before([head, Flood(chunk(b" "))]) as (rough, client):
            with pytest.raises(Unavailable) as failed:
                await client.models()
            await rough.gone.wait()

        assert failed.value.code == "upstream_timeout"

    @pytest.mark.parametrize(
        "script",
        [
            [b"HTTP/1.1 200 OK\r\nx: ", Flood(b"x" * 4_096)],
            [b"HTTP/1.1 200 OK\r\n", Flood(b"x: y\r\n" * 100)],
            [b"HTTP/1.1 200 ", Flood(b"O" * 4_096)],
            [OK + b"transfer-encoding: chunked\r\n\r\n1;", Flood(b"x" * 4_096)],
            [OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", Flood(b"x: y\r\n" * 100)],
        ],
        ids=["a header", "headers", "a reason", "an extension of a chunk", "trailers"],
    )
    async def test_what_is_said_beside_the_content_has_an_end(self, script: list[Step]) -> None:
        async with before(script) as (rough, client):
            with pytest.raises(Unavailable) as failed:
                await client.chat("m", ASKED, 5)
            await rough.gone.wait()

        assert failed.value.code == "upstream_error"
        assert rough.flooded < 16 * MIB

    @pytest.mark.parametrize("data", [chunk(b"x" * 65_536), chunk(b"xy") * 8_000], ids=["large chunks", "tiny chunks"])
    async def test_a_huge_body_is_left_at_the_limit(self, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openai_compatible, "MAX_ANSWER_BYTES", 4 * MIB)
        async with before([OK + b"transfer-encoding: chunked\r\n\r\n", Flood(data)]) as (rough, client):
            tracemalloc.start()
            try:
                with pytest.raises(Unavailable, match="too large"):
                    await client.chat("m", ASKED, 5)
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            await rough.gone.wait()

        # What is held, what a growing buffer needs to grow, and the sockets' buffers, ours being both ends.
        assert most < 16 * MIB
        assert MAX_ANSWER_BYTES == 64 * MIB


class TestStreams:
    async def test_a_stream_is_told_as_it_comes(self) -> None:
        async with before([SSE + event(TOKEN), Stall(), event(TOKEN) + event(b"[DONE]") + LAST_CHUNK]) as (
            rough,
            client,
        ):
            parts = client.stream("m", ASKED, 5)
            first = await anext(parts)
            rough.resume.set()
            rest = [one async for part in parts for one in written_out(part)]

        assert [*written_out(first), *rest] == [json.loads(TOKEN)] * 2

    async def test_the_end_is_what_the_stream_says_not_what_the_framing_does(self) -> None:
        done: list[Step] = [SSE + event(TOKEN) + event(b"[DONE]"), Stall()]
        async with before(done) as (rough, client):
            parts = await streamed(client)
            await rough.gone.wait()

        assert len(parts) == 1

    async def test_streams_read_to_the_end_share_a_connection(self) -> None:
        async with before([SSE + event(TOKEN) + event(b"[DONE]") + LAST_CHUNK]) as (rough, client):
            for _ in range(5):
                await streamed(client)

        assert rough.connections == 1

    @pytest.mark.parametrize("end", [LAST_CHUNK, b"0\r\nx-trailer: y\r\n\r\n", chunk(b": bye\n\n") + LAST_CHUNK])
    async def test_the_formal_end_may_come_behind_the_streams_own(self, end: bytes) -> None:
        async with before([SSE + event(TOKEN) + event(b"[DONE]"), Drip(end)]) as (rough, client):
            for _ in range(5):
                await streamed(client)
                while not client._pool._idle:
                    await anyio.lowlevel.checkpoint()

        assert rough.connections == 1

    async def test_what_comes_behind_the_formal_end_is_never_the_next_answer(self) -> None:
        done = SSE + event(TOKEN) + event(b"[DONE]")
        async with before([done, Drip(LAST_CHUNK[:-1]), LAST_CHUNK[-1:] + GOOD], [GOOD]) as (rough, client):
            await streamed(client)
            await rough.gone.wait()
            await client.chat("m", ASKED, 5)

        assert rough.connections == 2

    @pytest.mark.parametrize("tokens", [0, 1, 3])
    @pytest.mark.parametrize("end", [[Cut()], [Cut(reset=True)], [LAST_CHUNK], [b"zz\r\n"], [Stall()]])
    async def test_one_that_breaks_off_after_some_tokens_says_so_after_them(self, tokens: int, end: list[Step]) -> None:
        # Read before the reset, which throws away what the kernel still holds.
        script: list[Step] = [SSE, *[Drip(event(TOKEN))] * tokens, *end]
        got: list[dict[str, Json]] = []
        async with before(script, [GOOD], timeout=SOON) as (rough, client):
            with pytest.raises(Unavailable) as failed:
                await streamed(client, got)
            await client.chat("m", ASKED, 5)

        assert len(got) == tokens
        assert failed.value.code == ("upstream_timeout" if end == [Stall()] else "upstream_error")
        assert unknown(failed.value)
        assert rough.connections == (1 if end == [LAST_CHUNK] else 2)

    @pytest.mark.parametrize("end", [b"zz\r\n", LAST_CHUNK + b"HTTP/1.1 200 OK\r\n\r\n"])
    async def test_what_comes_in_one_read_with_its_breaking_off_is_content_all_the_same(self, end: bytes) -> None:
        got: list[dict[str, Json]] = []
        script: list[Step] = [SSE + event(TOKEN), Stall(), event(TOKEN) * 2 + end, Stall()]
        async with before(script) as (rough, client):

            async def read() -> None:
                async for part in client.stream("m", ASKED, 5):
                    got.extend(written_out(part))
                    rough.resume.set()

            with pytest.raises(Unavailable) as failed:
                await read()
            await rough.gone.wait()

        assert len(got) == 3
        assert failed.value.code == "upstream_error"

    @pytest.mark.parametrize(
        "bad",
        [
            b"{", b"[]", b"null", b'{"choices":5}', b'{"choices":[{"delta":{"content":7}}]}', b"\xff", b"[" * 100_000,
            b'{"id":"\xff"}',
            b'{"error":{"message":"sk-live-0a1b2c3d4e5f60718293a4b5c6d7e8f9"}}', b'{"usage":{"prompt_tokens":-1}}',
        ],
    )  # fmt: skip
    async def test_a_bad_event_ends_the_stream_and_the_connection(self, bad: bytes) -> None:
        async with before([SSE + event(TOKEN) + event(bad) + event(TOKEN), Stall()]) as (rough, client):
            with pytest.raises(Unavailable) as failed:
                await streamed(client)
            await rough.gone.wait()

        assert failed.value.code == "upstream_error"
        assert SECRET not in str(failed.value) + repr(failed.value.details)

    async def test_a_line_without_end_is_left_at_the_limit(self) -> None:
        async with before([SSE + chunk(b"data: "), Flood(chunk(b"x" * 65_536))]) as (rough, client):
            with pytest.raises(Unavailable, match="too large"):
                await streamed(client)
            await rough.gone.wait()

        assert rough.flooded < 2 * MAX_EVENT_BYTES

    async def test_a_slow_reader_slows_the_backend_down(self) -> None:
        async with before([SSE, Flood(event(TOKEN) * 100, of=64 * MIB)]) as (rough, client):
            parts = client.stream("m", ASKED, 5)
            await anext(parts)
            before_it, after_it = -1, rough.flooded
            while before_it != after_it:
                # As long as the sockets' buffers take something, the backend goes on.
                await anyio.sleep(0.1)
                before_it, after_it = after_it, rough.flooded
            await parts.aclose()
            await rough.gone.wait()

        assert after_it < HIGH_WATER_BYTES + 32 * MIB

    async def test_the_wait_for_a_reader_is_not_the_backends(self) -> None:
        events: list[Step] = [event(TOKEN) * 2_000] * 10
        script: list[Step] = [SSE, *events, event(b"[DONE]") + LAST_CHUNK]
        async with before(script, timeout=SOON) as (_, client):
            parts = client.stream("m", ASKED, 5)
            count = len(list(written_out(await anext(parts))))
            await anyio.sleep(2 * SOON.total_seconds())
            count += len([one async for part in parts for one in written_out(part)])

        assert count == 20_000

    async def test_the_wait_for_a_stream_to_begin_has_a_limit_of_its_own(self) -> None:
        async with before([Stall()], first_byte_timeout=SOON) as (rough, client):
            with pytest.raises(Unavailable) as failed:
                await streamed(client)
            await rough.gone.wait()

        assert failed.value.code == "upstream_timeout"


class TestRefusals:
    async def test_a_full_backend_says_when_to_come_again(self) -> None:
        async with before([whole(b"slow down", status="429 Too Many Requests", retry_after="7")]) as (rough, client):
            with pytest.raises(Unavailable) as refused:
                await client.chat("m", ASKED, 5)
            with pytest.raises(Unavailable):
                await client.chat("m", ASKED, 5)

        assert refused.value.code == "upstream_error"
        assert refused.value.retry_after == timedelta(seconds=7)
        assert refused.value.details == {"upstream_status": 429}
        assert rough.connections == 1

    @pytest.mark.parametrize(
        ("told", "understood"),
        [("0", 0), ("99999999999999999999", 60), ("-1", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("7.5", None)],
    )
    async def test_when_to_come_again_is_seconds_within_reason(self, told: str, understood: int | None) -> None:
        async with before([whole(b"", status="503 Service Unavailable", retry_after=told)]) as (_, client):
            with pytest.raises(Unavailable) as refused:
                await client.chat("m", ASKED, 5)

        assert refused.value.retry_after == (None if understood is None else timedelta(seconds=understood))

    async def test_a_refusal_that_quotes_the_key_is_not_passed_on(self) -> None:
        quoting = json.dumps({"error": {"message": f"Incorrect API key {SECRET}", "code": SECRET}}).encode()
        statuses = ["401 Unauthorized", "400 Bad Request", f"500 {SECRET}"]
        scripts: list[list[Step]] = [[whole(quoting, status=status, x_quoted=SECRET)] for status in statuses]
        said = []
        async with before(*scripts) as (rough, client):
            for _ in statuses:
                with pytest.raises(AgentOSError) as refused:
                    await client.chat("m", ASKED, 5)
                said.append(f"{refused.value.message} {refused.value.details}")

        assert all(f"authorization: Bearer {SECRET}".encode() in request for request in rough.requests)
        assert not [text for text in said if SECRET in text]

    async def test_of_a_huge_refusal_only_the_status_is_read(self) -> None:
        head = b"HTTP/1.1 400 Bad Request\r\ntransfer-encoding: chunked\r\n\r\n"
        async with before([head, Flood(chunk(b"x" * 65_536))]) as (rough, client):
            with pytest.raises(InvalidArgument) as refused:
                await client.chat("m", ASKED, 5)
            await rough.gone.wait()

        assert refused.value.details == {"upstream_status": 400}

    async def test_a_redirect_is_not_followed(self) -> None:
        async with rough_backend([GOOD]) as elsewhere:
            moved = whole(b"", status="307 Temporary Redirect", location=f"{elsewhere.url}/chat/completions")
            async with before([moved]) as (_, client):
                with pytest.raises(Unavailable):
                    await client.chat("m", ASKED, 5)

        assert elsewhere.requests == []


class TestLeaving:
    @pytest.mark.parametrize("script", [[Stall()], [GOOD[:-1], Stall()]], ids=["before the head", "in the body"])
    async def test_whoever_leaves_ends_the_call_at_once(self, script: list[Step]) -> None:
        async with before(script) as (rough, client):
            call = asyncio.create_task(client.chat("m", ASKED, 5))
            await rough.stalled.wait()
            call.cancel()
            with anyio.fail_after(0.25):
                await rough.gone.wait()
            with pytest.raises(asyncio.CancelledError):
                await call

    async def test_a_stream_that_is_closed_ends_at_once(self) -> None:
        async with before([SSE + event(TOKEN), Stall()]) as (rough, client):
            parts = client.stream("m", ASKED, 5)
            await anext(parts)
            await parts.aclose()
            with anyio.fail_after(0.25):
                await rough.gone.wait()

    async def test_a_client_that_is_closed_ends_its_calls(self) -> None:
        async with before([Stall()]) as (rough, client):
            call = asyncio.create_task(client.chat("m", ASKED, 5))
            await rough.stalled.wait()
            await client.aclose()
            with pytest.raises(Unavailable):
                await call
            with pytest.raises(Unavailable) as refused:
                await client.chat("m", ASKED, 5)

        assert refused.value.details == {"sent": False}


class TestKeptConnections:
    async def test_one_that_the_backend_closed_meanwhile_is_not_used_and_nothing_is_sent_twice(self) -> None:
        async with before([GOOD]) as (rough, client):
            for _ in range(20):
                await client.chat("m", ASKED, 5)
                rough.hang_up()
                # The loop gets no turn in which to hear of it: the next call has to ask the kernel.

        assert len(rough.requests) == 20

    async def test_a_call_that_was_cut_off_is_not_made_again(self) -> None:
        async with before([GOOD], [Cut()], [GOOD]) as (rough, client):
            await client.chat("m", ASKED, 5)
            with pytest.raises(Unavailable) as failed:
                await client.chat("m", ASKED, 5)

        assert unknown(failed.value)
        assert len(rough.requests) == 2

    async def test_one_that_says_goodbye_is_closed(self) -> None:
        async with before([whole(ANSWER, connection="close")]) as (rough, client):
            for _ in range(2):
                await client.chat("m", ASKED, 5)

        assert rough.connections == 2

    async def test_an_answer_before_the_request_was_read_ends_the_connection(self) -> None:
        large: Any = {"messages": [{"role": "user", "content": "x" * 32 * MIB}]}
        hasty, gone = whole(b"", status="413 Content Too Large"), asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(hasty)
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
            gone.set()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            client = OpenAiCompatible(name="up", base_url=url)
            with anyio.fail_after(20), pytest.raises(InvalidArgument) as refused:
                await client.chat("m", large, 5)
            kept = client._pool._idle
            await gone.wait()
            await client.aclose()

        assert refused.value.details == {"upstream_status": 413}
        assert kept == []


class TestReaching:
    async def test_nobody_there_is_told_as_not_sent(self, free_tcp_port: int) -> None:
        client = OpenAiCompatible(name="up", base_url=f"http://127.0.0.1:{free_tcp_port}/v1")

        with pytest.raises(Unavailable) as failed:
            await client.chat("m", ASKED, 5)

        assert failed.value.details == {"sent": False}

    async def test_of_several_addresses_the_one_that_answers_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with before([GOOD]) as (rough, client):
            with silent_port() as nowhere:
                there = int(rough.url.split(":")[2].split("/")[0])
                infos = [
                    (family, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
                    for family, port in ((socket.AF_INET, nowhere), (socket.AF_INET, 1), (socket.AF_INET, there))
                ]

                async def resolved(*_: Any, **__: Any) -> Any:
                    return infos

                monkeypatch.setattr(dial, "_addresses", resolved)
                answer = await client.chat("m", ASKED, 5)

        assert answer == json.loads(ANSWER)

    async def test_an_address_that_does_not_answer_is_given_up_in_time(self) -> None:
        with silent_port() as nowhere:
            client = OpenAiCompatible(name="up", base_url=f"http://127.0.0.1:{nowhere}", connect_timeout=SOON)
            with anyio.fail_after(5), pytest.raises(Unavailable) as failed:
                await client.chat("m", ASKED, 5)

        assert failed.value.details == {"sent": False}

    async def test_proxies_of_the_environment_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        async with before([GOOD]) as (_, client):
            assert await client.chat("m", ASKED, 5)


class TestTls:
    @asynccontextmanager
    async def before(
        self, authority: Authority, name: str, trusted: ssl.SSLContext | None
    ) -> AsyncIterator[tuple[RoughBackend, OpenAiCompatible]]:
        with anyio.fail_after(30):
            async with rough_backend([GOOD], tls=authority.server(name)) as rough:
                url = rough.url.replace("127.0.0.1", "localhost")
                client = OpenAiCompatible(name="up", base_url=url, tls=trusted)
                try:
                    yield rough, client
                finally:
                    await client.aclose()

    async def test_a_trusted_backend_is_asked_over_one_connection(self, tmp_path: Path) -> None:
        authority = new_authority(tmp_path)
        async with self.before(authority, "localhost", tls_context(authority.file)) as (rough, client):
            for _ in range(3):
                await client.chat("m", ASKED, 5)

        assert rough.connections == 1

    async def test_an_unknown_authority_is_told_as_such(self, tmp_path: Path) -> None:
        async with self.before(new_authority(tmp_path), "localhost", None) as (rough, client):
            with pytest.raises(Unavailable, match="certificate is not trusted") as failed:
                await client.chat("m", ASKED, 5)

        assert failed.value.details == {"sent": False}
        assert rough.requests == []

    async def test_a_certificate_for_another_name_is_refused(self, tmp_path: Path) -> None:
        authority = new_authority(tmp_path)
        async with self.before(authority, "other.example", tls_context(authority.file)) as (rough, client):
            with pytest.raises(Unavailable, match="certificate is not trusted"):
                await client.chat("m", ASKED, 5)

        assert rough.requests == []

    async def test_a_file_without_certificates_is_refused_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text("nothing")

        with pytest.raises(InvalidArgument, match=r"empty\.pem"):
            tls_context(str(tmp_path / "empty.pem"))
