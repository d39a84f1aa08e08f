"""The backend of the fuzzed gateway: answers well, or, when it is told to, in ways that no backend should."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from tests.support.rough_backend import LAST_CHUNK, SSE, chunk, event, whole
from tests.support.scripted_upstream import completion, delta, usage

_CALL: Final = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": '{"q": 1}'}}


class Upstream:
    """`spoiled` is the share of answers that are bad."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.spoiled = 0.0
        self.asked = 0
        self.misread: list[str] = []
        """Requests of the gateway that no backend could read: these are its own faults."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"GET "):
                    # How it is.
                    writer.write(whole(b'{"data": []}'))
                    continue
                self.asked += 1
                if await self._answer(head, body, writer):
                    break
        writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether it hangs up afterwards."""
        try:
            asked = json.loads(body.decode("utf-8"))
            assert isinstance(asked, dict)
        except (ValueError, AssertionError, RecursionError) as error:
            self.misread.append(f"{type(error).__name__}: {body[:200]!r}")
            asked = {}
        embeds = b"/embeddings " in head.partition(b"\r\n")[0]
        if self._draw.random() < self.spoiled:
            writer.write(self._bad(stream=bool(asked.get("stream"))))
            await writer.drain()
            return True
        if embeds:
            given = asked.get("input")
            data = [{"index": at, "embedding": [0.5] * 8} for at in range(len(given) if isinstance(given, list) else 1)]
            writer.write(whole(json.dumps({"data": data, "usage": usage(3, 0)}).encode()))
        elif asked.get("stream"):
            writer.write(SSE + b"".join(self._good_stream(asked)) + LAST_CHUNK)
        else:
            answer = completion("blue, says ann@example.com", usage=usage(3, 2)).body
            writer.write(whole(json.dumps(answer).encode()))
        await writer.drain()
        return False

    def _good_stream(self, asked: dict[str, object]) -> list[bytes]:
        said: Sequence[object] = [
            delta(role="assistant", content="bl"),
            delta(content="ue, says ann@exam"),
            delta(content="ple.com"),
            *([delta(tool_calls=[_CALL])] if asked.get("tools") else []),
            delta("stop"),
            {"id": "c", "choices": [], "usage": usage(3, 2)},
        ]
        return [*(event(json.dumps(one).encode()) for one in said), event(b"[DONE]")]

    def _bad(self, *, stream: bool) -> bytes:
        draw = self._draw
        if not stream or draw.random() < 0.2:
            body = json.dumps(completion("hi", usage=usage(3, 2)).body).encode()
            return draw.choice(WHOLE_ANSWERS)(draw, body)
        frames = [
            event(json.dumps(one).encode()) for one in (delta(role="assistant", content="bl"), delta(content="ue"))
        ]
        frames += [event(json.dumps(delta("stop")).encode()), event(b"[DONE]")]
        at = draw.randrange(len(frames))
        spoiled = draw.choice(FRAMES)(draw)
        return SSE + b"".join((*frames[:at], spoiled, *(frames[at:] if draw.random() < 0.5 else [])))


WHOLE_ANSWERS: Final[Sequence[Callable[[random.Random, bytes], bytes]]] = (
    lambda draw, body: whole(body, status=f"{draw.choice((100, 204, 301, 400, 401, 404, 418, 429, 500, 503, 599))} X"),
    lambda draw, body: whole(body[: draw.randrange(len(body))]),
    lambda draw, body: whole(body, length=draw.choice((0, 1, len(body) + 9, 10**15))),
    lambda draw, body: whole(body.replace(b'"', b"'", draw.randrange(1, 9))),
    lambda draw, _: whole(
        draw.choice((b"", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [null]}', b"[" * 9_999))
    ),
    lambda draw, body: whole(
        body.replace(b"3", draw.choice((b"-3", b"3e99", b'"3"', b"null", b"99999999999999999999")))
    ),
    lambda draw, body: whole(body.replace(b'"hi"', draw.choice((b"1", b"[]", b'"\\ud800"', b'"\\u0000"', b"{}")))),
    lambda draw, _: draw.randbytes(draw.randrange(1, 400)),
    lambda _, body: b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n" + body,
    lambda _, __: b"",
    lambda _, body: whole(body, content_encoding="gzip"),
    lambda _, body: whole(body, transfer_encoding="chunked"),
)
FRAMES: Final[Sequence[Callable[[random.Random], bytes]]] = (
    lambda draw: chunk(draw.randbytes(draw.randrange(1, 300))),
    lambda draw: event(
        draw.choice((b"", b"{", b"null", b"[]", b"1", b"{}", b'{"choices": null}', b'{"choices": [null]}'))
    ),
    lambda draw: event(json.dumps(delta(content=draw.choice((1, [], {}, True, None)))).encode()),
    lambda draw: event(
        json.dumps(delta(tool_calls=draw.choice(([None], [{}], [{"index": -1}], [{"index": 10**9}], 1)))).encode()
    ),
    lambda draw: event(
        json.dumps({"id": 7, "choices": [], "usage": draw.choice((1, {}, {"prompt_tokens": -1}))}).encode()
    ),
    lambda draw: event(json.dumps({"error": draw.choice(("x", {}, {"code": 1}, None))}).encode()),
    lambda _: event(b'{"choices": [{"index": 0, "delta": {"content": "\\ud800"}}]}'),
    lambda _: chunk(b"data: " + b"x" * 9_000_000 + b"\n\n"),
    lambda draw: chunk(
        draw.choice((b": ping\n\n", b"event: x\ndata: {}\n\n", b"data\n\n", b"\r\r\n\n", b"id: 1\nretry: 2\n\n"))
    ),
    lambda draw: draw.choice((b"zz\r\n", b"-5\r\nhello\r\n", b"5\r\nhel", b"fffffffffffffffff\r\n")),
    lambda draw: event(json.dumps(delta("stop", index=draw.choice((-1, 5, 10**12)), content="x")).encode()),
    lambda draw: event(json.dumps(delta(draw.choice(("", "odd", "length")), role=draw.choice(("user", "x")))).encode()),
    lambda _: LAST_CHUNK,
)


@asynccontextmanager
async def listening(upstream: Upstream) -> AsyncIterator[str]:
    """Its base URL."""
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=1 << 26)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
