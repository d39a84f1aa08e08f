"""A backend that answers at once, always the same: `python -m tests.bench.upstream <port>`.

Raw asyncio, so that it costs as little as a Python server can. A request for a stream gets `TOKENS` chunks: all of them in
one write; for the model `IN_CHUNKS` each in a write of its own, as servers of models write them, without a pause; or, for
the model `PACED`, one every `PACE_SECONDS`, the first at once.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, cast

import httptools
import msgspec

from deploy.roots.server import run
from tests.bench.machine import READY

INSTANT: Final = "bench-instant"
IN_CHUNKS: Final = "bench-in-chunks"
PACED: Final = "bench-paced"
TOKENS: Final = 32
TOKEN: Final = "tok "
PACE_SECONDS: Final = 0.003

_HEAD: Final = {"id": "chatcmpl-bench", "created": 1_700_000_000, "model": INSTANT}
_USAGE: Final = {"prompt_tokens": 210, "completion_tokens": TOKENS, "total_tokens": 210 + TOKENS}


@lru_cache(maxsize=1)
def whole(now: int) -> bytes:
    """The answer to a request without a stream, with the date as servers of models say it. `now`: seconds of the epoch."""
    message = {"role": "assistant", "content": TOKEN * TOKENS}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = msgspec.json.encode({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE})
    date = formatdate(now, usegmt=True)
    head = f"HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunks() -> list[bytes]:
    """A stream: its head with the role, its tokens, its finish reason, its usage, and its end."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    role = _event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    token = _event([{"index": 0, "delta": {"content": TOKEN}, "finish_reason": None}])
    finish = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    done = _frame(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return [head + role, *[token] * TOKENS, finish, _event([], usage=_USAGE), done]


def pieces() -> list[bytes]:
    """The same in pieces: the first token with what is before it, the other tokens, and what is behind them."""
    role, first, *others = chunks()
    tokens, end = others[: TOKENS - 1], others[TOKENS - 1 :]
    return [role + first, *tokens, b"".join(end)]


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {**_HEAD, "object": "chat.completion.chunk", "choices": choices, **more}
    return _frame(b"data: " + msgspec.json.encode(chunk) + b"\n\n")


def _frame(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Answering(asyncio.Protocol):
    """One connection. Requests on it come one after the other, as our clients send them."""

    _CHUNKS: Final = chunks()
    _PIECES: Final = pieces()

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, without saying so

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if b'"stream":true' not in body:
            self._write(whole(int(time.time())))
        elif PACED.encode() in body:
            loop = asyncio.get_running_loop()
            first, *others = self._PIECES
            # Not by the loop: when the process has to wait, it may be behind those that have a time.
            self._write(first)
            for number, piece in enumerate(others, 1):
                loop.call_later(number * PACE_SECONDS, self._write, piece)
        elif IN_CHUNKS.encode() in body:
            self._next(iter(self._CHUNKS))
        else:
            self._write(b"".join(self._CHUNKS))

    def _next(self, chunks: Iterator[bytes]) -> None:
        """One in each turn of the loop: what is written in the same turn, uvloop sends together."""
        chunk = next(chunks, None)
        if chunk is not None:
            self._write(chunk)
            asyncio.get_running_loop().call_soon(self._next, chunks)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(Answering, "127.0.0.1", port)
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    await ended.wait()
    server.close()


if __name__ == "__main__":
    run(main(int(sys.argv[1])))
