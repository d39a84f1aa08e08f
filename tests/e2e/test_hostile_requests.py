"""Requests that mean no good, by the byte, before every surface: what two readers could take for two things is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import pytest
from anyio.abc import SocketStream

from deploy.roots.http_protocol import MAX_FRAMING_BYTES, BoundedProtocol
from ports.http.body import Receive
from ports.http.edge import Scope, Send
from ports.http.limits import MAX_HEADER_BYTES
from tests.support.http_server import served
from tests.support.raw_http import SURFACES, Surface, cut_off, heard, surface

pytestmark = [pytest.mark.anyio]

SMUGGLED: Final = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
GET: Final = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
CHUNKED: Final = "transfer-encoding: chunked"
LAST: Final = "connection: close"
"""So that all there is to hear is heard at once."""
EMPTY_CHUNKS: Final = b"0\r\n\r\n"

AMBIGUOUS: Final[dict[str, tuple[tuple[str, ...], bytes]]] = {
    "a length and chunks": (("content-length: 5", CHUNKED), EMPTY_CHUNKS + SMUGGLED),
    "chunks and a length": ((CHUNKED, "content-length: 5"), EMPTY_CHUNKS + SMUGGLED),
    "chunks after a tab, and a length": (("transfer-encoding:\tchunked", "content-length: 5"), EMPTY_CHUNKS + SMUGGLED),
    "chunks, folded, and a length": (("transfer-encoding:\r\n chunked", "content-length: 2"), b"{}" + SMUGGLED),
    "two lengths that differ": (("content-length: 2", "content-length: 40"), b"{}" + SMUGGLED),
    "two lengths that agree": (("content-length: 2", "content-length: 2"), b"{}" + SMUGGLED),
    "a list of lengths": (("content-length: 2, 2",), b"{}" + SMUGGLED),
    "a length with a sign": (("content-length: +2",), b"{}" + SMUGGLED),
    "a negative length": (("content-length: -2",), b"{}" + SMUGGLED),
    "a hexadecimal length": (("content-length: 0x2",), b"{}" + SMUGGLED),
    "a length of many digits": (("content-length: 99999999999999999999999",), b"{}" + SMUGGLED),
    "an empty length": (("content-length:",), b"{}" + SMUGGLED),
    "chunks that are none in the end": (("transfer-encoding: chunked, identity",), EMPTY_CHUNKS + SMUGGLED),
    "chunks, and then none": ((CHUNKED, "transfer-encoding: identity"), EMPTY_CHUNKS + SMUGGLED),
    "no chunks": (("transfer-encoding: identity",), b"{}" + SMUGGLED),
    "something like chunks": (("transfer-encoding: xchunked", "content-length: 2"), b"{}" + SMUGGLED),
    "chunks before a colon and a space": (("transfer-encoding : chunked",), EMPTY_CHUNKS + SMUGGLED),
    "chunks after a vertical tab": (("transfer-encoding: \x0bchunked",), EMPTY_CHUNKS + SMUGGLED),
    "a size that is none": ((CHUNKED,), b"zz\r\n{}\r\n0\r\n\r\n"),
    "a size with 0x": ((CHUNKED,), b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a negative size": ((CHUNKED,), b"-2\r\n{}\r\n0\r\n\r\n"),
    "a size that overflows": ((CHUNKED,), b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    "a chunk longer than its size": ((CHUNKED,), b"2\r\n{}XX0\r\n\r\n" + SMUGGLED),
    "an extension that ends in a bare line feed": ((CHUNKED,), b"2;\n{}\r\n0\r\n\r\n"),
}
MALFORMED: Final = {
    "bare line feeds": b"GET /healthz HTTP/1.1\nhost: x\n\n",
    "a bare line feed between fields": b"GET /healthz HTTP/1.1\r\nhost: x\nx-a: b\r\n\r\n",
    "a bare carriage return between fields": b"GET /healthz HTTP/1.1\r\nhost: x\rx-a: b\r\n\r\n",
    "a folded field": GET + b"x-a: b\r\n c: d\r\n\r\n",
    "a field before the first": b"GET /healthz HTTP/1.1\r\n host: x\r\nhost: y\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nhost : x\r\n\r\n",
    "a space in a name": GET + b"x a: b\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "NUL in a value": GET + b"x-a: b\0c\r\n\r\n",
    "a control character in a value": GET + b"x-correlation-id: a\x01b\r\n\r\n",
    "an unknown method": b"FOO /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method in lower case": b"get /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method for proxies": b"CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "version 0.9": b"GET /healthz\r\n\r\n",
    "version 1.2": b"GET /healthz HTTP/1.2\r\nhost: x\r\n\r\n",
    "version 2.0": b"GET /healthz HTTP/2.0\r\nhost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a target without its slash": b"GET healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target that begins encoded": b"GET %2fhealthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target with a backslash": b"GET \\healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target that is not ASCII": b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target with a fragment": b"GET /healthz#/v1/runs HTTP/1.1\r\nhost: x\r\n\r\n",
    "a query that is not ASCII": b"GET /readyz?a=\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target without end": b"GET /" + b"a" * (MAX_HEADER_BYTES + 10_000) + b" HTTP/1.1\r\nhost: x\r\n\r\n",
}
TARGETS: Final = {
    "/healthz": 200,
    "/health%7A": 200,
    "http://evil.example/healthz": 200,
    "https://a:b@evil.example:99/healthz": 200,
    "//healthz": 404,
    "//evil.example/healthz": 404,
    "/healthz/": 404,
    "/./healthz": 404,
    "/%2e/healthz": 404,
    "/v1/../healthz": 404,
    "/v1/%2e%2e/healthz": 404,
    "/%2fhealthz": 404,
    "/%2Fhealthz": 404,
    "/healthz;a=b": 404,
    "/healthz%3Ba=b": 404,
    "/healthz%00": 404,
    "/healthz%20": 404,
    "/healthz%0d%0aX-Evil:%201": 404,
    "/%ff": 404,
    "/%": 404,
    "/%zz": 404,
    "/HEALTHZ": 404,
    "*": 404,
}
BOMBS: Final = {
    "a depth of 65": b'{"a":' * 65 + b"1" + b"}" * 65,
    "a depth of 100,000": b'{"a":' * 100_000,
    "lists in lists": b"[" * 200_000,
    "a number of 100,000 digits": b'{"input":' + b"9" * 100_000 + b"}",
    "a number without end": b'{"input":1e999999}',
    "NaN": b'{"input":NaN}',
    "-Infinity": b'{"input":-Infinity}',
    "a key twice": b'{"input":1,"input":2}',
    "half a surrogate pair": b'{"input":"\\ud800"}',
    "half a pair in a key": b'{"\\udfff":1}',
    "NUL": b'{"input":"\\u0000"}',
    "raw NUL": b'{"input":"\x00"}',
    "a mark of the byte order": b"\xef\xbb\xbf{}",
    "UTF-16": '{"input":1}'.encode("utf-16"),
    "an overlong encoding": b'{"input":"\xc0\xaf"}',
    "no object": b"[1]",
    "nothing of JSON": b"<a/>",
    "two documents": b"{}{}",
}


BIG: Final = 16 * 1024 * 1024
"""More than the system buffers on the way."""


class Hasty(BoundedProtocol):
    """The product's protocol, with less patience."""

    window_s = 0.5
    window_bytes = 1_024


@pytest.fixture(params=SURFACES)
async def target(request: Any) -> AsyncIterator[Surface]:
    async with surface(request.param) as made:
        yield made


async def test_framing_that_two_readers_could_take_for_two_things_is_refused_and_ends_the_connection(
    target: Surface,
) -> None:
    for name, (fields, body) in AMBIGUOUS.items():
        told = await target.hears(target.posted(*fields, body=body))

        assert (told.statuses, told.closed) == ([400], True), name
    assert "/smuggled" not in target.seen


async def test_what_is_not_http_is_refused_in_the_words_of_every_other_error(target: Surface) -> None:
    for name, raw in MALFORMED.items():
        told = await target.hears(raw)

        assert (told.statuses, told.closed) == ([400], True), name
        [answer] = told.answers
        error = json.loads(answer.body)["error"]
        assert error["code"] == "invalid_request", name
        assert f"x-correlation-id: {error['correlation_id']}".encode() in answer.head, name
    assert target.seen == []


async def test_a_body_where_none_belongs_is_not_the_next_request(target: Surface) -> None:
    told = await target.hears(GET + b"content-length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED)

    assert told.statuses == [200]
    assert target.seen == ["/healthz"]


async def test_chunks_in_a_version_that_has_none_end_the_connection(target: Surface) -> None:
    raw = target.posted(CHUNKED, body=EMPTY_CHUNKS + SMUGGLED).replace(b"HTTP/1.1", b"HTTP/1.0", 1)

    told = await target.hears(raw)

    assert told.closed
    assert len(told.answers) == 1
    assert "/smuggled" not in target.seen


async def test_fields_behind_a_body_are_no_header_fields(target: Surface) -> None:
    body = b"2\r\n{}\r\n0\r\nx-tenant-id: tnt_globex\r\nhost: other\r\nidempotency-key: other\r\n\r\n"
    head = f"POST {target.post} HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n{CHUNKED}\r\n\r\n".encode()

    told = await target.hears(target.posted(CHUNKED, body=body))
    anonymous = await target.hears(
        head + b"2\r\n{}\r\n0\r\nauthorization: Bearer " + target.token.encode() + b"\r\n\r\n"
    )

    # As without them: neither a tenant that differs, nor a singleton that was sent twice.
    assert told.statuses == (await target.hears(target.posted(CHUNKED, body=b"2\r\n{}\r\n0\r\n\r\n"))).statuses
    assert told.statuses[0] in {404, 422}
    assert anonymous.statuses == [401]


@pytest.mark.parametrize(
    "endless",
    [b"x-pad: " + b"p" * 1_000 + b"\r\n", b"1;" + b"e" * 1_000 + b"\r\nx\r\n"],
    ids=["fields behind a body", "extensions of chunks"],
)
async def test_what_is_of_no_use_and_has_no_end_is_cut_off(target: Surface, endless: bytes) -> None:
    first = b"2\r\n{}\r\n0\r\n" if endless.startswith(b"x-pad") else b""
    with anyio.fail_after(20):
        async with target.connected() as stream:
            await stream.send(target.posted(CHUNKED, body=first))
            # What the system buffers on the way is far less than this. A server that read on would take it all.
            assert await cut_off(stream, endless * 100, times=640)


async def test_a_header_block_that_is_too_large_is_refused(target: Surface) -> None:
    for fields in (b"x-pad: " + b"p" * MAX_HEADER_BYTES, b"\r\n".join([b"a: b"] * 10_000)):
        told = await target.hears(GET + fields + b"\r\n\r\n")

        assert (told.statuses, told.closed) == ([400], True)
    assert target.seen == []


async def test_pipelined_requests_are_answered_in_their_order(target: Surface) -> None:
    told = await target.hears((GET + b"\r\n") * 3 + b"GET /absent HTTP/1.1\r\nhost: x\r\n\r\n" + GET + b"\r\n")

    assert told.statuses == [200, 200, 200, 404, 200]


async def begin(scope: Scope, receive: Receive, send: Send) -> None:
    """A stream, of which the first piece is sent."""
    assert scope["type"] == "http"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})


async def first_of(stream: SocketStream) -> bytes:
    """What was received once that piece is there."""
    said = b""
    while b"first" not in said:
        said += await stream.receive()
    return said


@pytest.mark.parametrize("behind", [b"", GET + b"\r\n"], ids=["nothing", "another"])
async def test_a_client_that_leaves_is_noticed_whatever_waits_behind_its_request(behind: bytes) -> None:
    left: list[str] = []
    over = anyio.Event()

    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(scope, receive, send)
        left.append((await receive())["type"])
        # What is said to nobody is no error.
        await send({"type": "http.response.body", "body": b"last"})
        over.set()

    with anyio.fail_after(20):
        async with served(streaming) as url:
            async with Surface(url, "", "", []).connected() as stream:
                await stream.send(GET + b"\r\n" + behind)
                await first_of(stream)
            await over.wait()

    assert left == ["http.disconnect"]


async def test_nonsense_behind_a_request_does_not_take_the_place_of_its_answer(target: Surface) -> None:
    told = await target.hears(GET + b"\r\n" + b"NONSENSE\r\n\r\n")

    assert (told.statuses[:1], told.closed) == ([200], True)
    assert json.loads(told.answers[0].body)["status"] == "ok"


async def test_nonsense_behind_a_request_is_not_written_into_its_stream() -> None:
    go_on = anyio.Event()

    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(scope, receive, send)
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"last"})

    with anyio.fail_after(20):
        async with served(streaming) as url, Surface(url, "", "", []).connected() as stream:
            await stream.send(GET + b"\r\n")
            said = await first_of(stream)
            await stream.send(b"NONSENSE\r\n\r\n")
            go_on.set()
            while True:
                try:
                    said += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    break

    assert b"400" not in said
    assert said.endswith(b"4\r\nlast\r\n0\r\n\r\n")


@dataclass
class Waiting:
    """An app whose first request waits for a word before it is answered; all others are answered once they are there."""

    began: anyio.Event = field(default_factory=anyio.Event)
    go_on: anyio.Event = field(default_factory=anyio.Event)
    seen: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.seen.append(scope["path"])
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
            self.began.set()
        self.sizes.append(size)
        if scope["path"] == "/first":
            await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def test_a_broken_request_behind_one_that_waits_ends_the_connection_and_is_asked_of_nobody() -> None:
    app = Waiting()
    broken = b"POST /second HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
    with anyio.fail_after(20):
        async with served(app) as url, Surface(url, "", "", []).connected() as stream:
            await stream.send(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
            await app.began.wait()
            await stream.send(broken)
            assert (await heard(stream)).answers == []
            app.go_on.set()
            told = await heard(stream)

    assert (told.statuses, told.closed) == ([200], True)
    assert (app.seen, app.sizes) == (["/first"], [0])


async def test_bodies_that_come_together_are_no_framing() -> None:
    app = Waiting()
    first, second = MAX_FRAMING_BYTES + 20_000, 1_000
    with anyio.fail_after(20):
        async with served(app) as url, Surface(url, "", "", []).connected() as stream:
            await stream.send(b"POST /one HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % first + b"b")
            await app.began.wait()
            head = b"POST /two HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % second
            await stream.send(b"b" * (first - 1) + head + b"b" * 10)
            assert (await heard(stream)).statuses == [200]
            await stream.send(b"b" * (second - 10))
            told = await heard(stream)

    assert (told.statuses, told.closed) == ([200], False)
    assert app.sizes == [first, second]


async def test_paths_that_could_be_taken_for_another_are_not(target: Surface) -> None:
    for path, status in TARGETS.items():
        told = await target.hears(f"GET {path} HTTP/1.1\r\nhost: x\r\n{LAST}\r\n\r\n".encode())

        assert told.statuses == [status], path
        assert b"x-evil" not in told.answers[0].head.lower(), path
        assert b"location" not in told.answers[0].head.lower(), path


async def test_no_answer_says_what_the_host_header_said(target: Surface) -> None:
    paths = ("/", "/healthz", "/readyz", "/openapi.json", "/v1/runs", "/v1/models", "/healthz/", "/v1/admin")
    poisoned = f"host: evil.example\r\nx-forwarded-host: evil.example\r\n{LAST}"
    raws = [f"GET {path} HTTP/1.1\r\n{poisoned}\r\n\r\n" for path in paths]
    posts = [
        target.posted("content-length: 13", "x-forwarded-host: evil.example", body=b'{"input":"x"}'),
        target.posted("content-length: 2", body=b"{}", path="/v1/runs/run_1:cancel"),
    ]

    for raw in (*(one.encode() for one in raws), *(one.replace(b"host: node", b"host: evil.example") for one in posts)):
        told = await target.hears(raw)

        assert len(told.answers) == 1
        assert b"evil" not in told.answers[0].head + told.answers[0].body, raw


async def test_one_host_is_needed_and_no_more(target: Surface) -> None:
    none = await target.hears(b"GET /healthz HTTP/1.1\r\n\r\n")
    two = await target.hears(b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")

    assert (none.statuses, two.statuses) == ([400], [400])


async def test_the_method_is_what_the_request_line_says(target: Surface) -> None:
    body = b'{"input":"x"}'
    overridden = target.posted(
        "x-http-method-override: POST", "x-method-override: POST", f"content-length: {len(body)}", body=body
    )

    told = await target.hears(overridden.replace(b"POST ", b"GET ", 1))
    traced = await target.hears(overridden.replace(b"POST ", b"TRACE ", 1))
    other = await target.hears(GET.replace(b"GET", b"POST") + b"x-http-method-override: GET\r\n\r\n")

    assert (told.statuses, traced.statuses, other.statuses) == ([405], [405], [405])
    assert target.token.encode() not in traced.answers[0].body


async def test_a_line_break_in_a_value_makes_no_header_of_ours(target: Surface) -> None:
    values = ("a%0d%0ax-evil: 1", "a\\r\\nx-evil: 1", "a\u0085x-evil: 1", "x" * 5_000)
    for value in values:
        for name in ("x-correlation-id", "x-request-id", "traceparent", "last-event-id", "if-match", "idempotency-key"):
            usual = [one for one in ("idempotency-key: hostile\r\n",) if name == "idempotency-key"]
            raw = target.posted(f"{name}: {value}", "content-length: 2", LAST, body=b"{}")
            for one in usual:
                raw = raw.replace(one.encode(), b"", 1)
            told = await target.hears(raw)

            assert len(told.answers) == 1, (name, value)
            assert told.statuses[0] < 500, (name, value)
            assert b"x-evil" not in told.answers[0].head, (name, value)


async def test_json_that_is_made_to_hurt_is_refused_at_once(target: Surface) -> None:
    for name, body in BOMBS.items():
        with anyio.fail_after(5):
            told = await target.hears(target.posted(f"content-length: {len(body)}", LAST, body=body))

        assert told.statuses in ([400], [422]), name
        assert json.loads(told.answers[0].body)["error"]["code"] in {"invalid_json", "validation_failed"}, name


async def test_a_body_that_says_it_is_packed_or_no_json_is_not_unpacked(target: Surface) -> None:
    packed = await target.hears(target.posted("content-encoding: gzip", "content-length: 2", body=b"{}"))
    form = await target.hears(
        target.posted("content-length: 9", body=b"input=abc").replace(b"application/json", b"text/plain")
    )

    assert (packed.statuses, form.statuses) == ([415], [415])


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize(
    ("said", "drop"),
    [
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"x-more: 1\r\n"),
        (b"", b"G"),
    ],
    ids=["header fields", "a request line"],
)
async def test_a_head_that_trickles_in_is_cut_off(name: str, said: bytes, drop: bytes) -> None:
    with anyio.fail_after(20):
        async with surface(name, protocol=Hasty) as slow, slow.connected() as stream:
            await stream.send(said or drop)
            assert await cut_off(stream, *((drop,) if said else ()), times=200, pause_s=0.05)


@pytest.mark.parametrize("name", SURFACES)
async def test_a_body_that_trickles_in_is_cut_off(name: str) -> None:
    with anyio.fail_after(20):
        async with surface(name, protocol=Hasty) as slow, slow.connected() as stream:
            await stream.send(slow.posted("content-length: 100000"))
            assert await cut_off(stream, b" ", times=200, pause_s=0.05)


class Listened(Hasty):
    """Tells when its connection is gone, and keeps it for less long."""

    reader_window_s = 2.0
    gone: anyio.Event

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self.timeout_keep_alive = 1
        type(self).gone = anyio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


async def big(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % BIG)]})
    await send({"type": "http.response.body", "body": bytes(BIG)})


@pytest.mark.parametrize("fields", [b"", b"connection: close\r\n"], ids=["kept alive", "closed"])
async def test_a_client_that_takes_nothing_of_its_answer_is_not_waited_for_and_a_slow_one_is(fields: bytes) -> None:
    with anyio.fail_after(30):
        async with served(big, protocol=Listened) as url, Surface(url, "", "", []).connected() as stream:
            await stream.send(GET + fields + b"\r\n")
            first = await stream.receive(1)
            await Listened.gone.wait()
        async with served(big, protocol=Listened) as url, Surface(url, "", "", []).connected() as stream:
            await stream.send(GET + fields + b"\r\n")
            size = len(await stream.receive())
            while size < BIG:
                # So slow that several windows pass meanwhile.
                with anyio.move_on_after(0.1):
                    await Listened.gone.wait()
                size += len(await stream.receive(BIG // 20))

    assert first == b"H"
    assert size > BIG


async def test_after_it_all_the_surface_serves(target: Surface) -> None:
    async with target.connected() as stream:
        for _ in range(3):
            await stream.send(GET + b"\r\n")
            assert (await heard(stream)).statuses == [200]
