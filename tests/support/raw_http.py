"""HTTP by the byte: what a client sends that means no good, and what comes back."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import anyio
import httpx
from anyio.abc import SocketStream
from msgspec import Struct

from deploy.roots.http_protocol import BoundedProtocol
from ports.http.body import Receive
from ports.http.edge import App, Scope, Send
from tests.support.admin import admin
from tests.support.http_server import served
from tests.support.stack_a import stack_a
from tests.support.stack_b import stack_b

SURFACES: Final = ("a", "b", "admin")
QUIET_S: Final = 0.5
"""After so long without a byte nothing more is expected. What is closed is seen at once."""
_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Answer(Struct, frozen=True):
    status: int
    head: bytes
    body: bytes


class Heard(Struct, frozen=True):
    answers: list[Answer]
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [one.status for one in self.answers]


@dataclass
class Surface:
    """One surface behind the product's server, and the paths that got as far as its app."""

    url: str
    token: str
    post: str
    """Takes a body."""
    seen: list[str]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[SocketStream]:
        host, port = self.url.removeprefix("http://").split(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            yield stream

    async def hears(self, raw: bytes) -> Heard:
        """All that is answered to `raw` on a connection of its own."""
        async with self.connected() as stream:
            with suppress(anyio.BrokenResourceError):  # answered before it was read
                await stream.send(raw)
            return await heard(stream)

    def posted(self, *fields: str, body: bytes = b"", path: str | None = None) -> bytes:
        """A POST of somebody who may, with these header fields beside the usual ones."""
        usual = (
            f"POST {path or self.post} HTTP/1.1",
            "host: node",
            f"authorization: Bearer {self.token}",
            "content-type: application/json",
            "idempotency-key: hostile",
        )
        return "\r\n".join((*usual, *fields, "", "")).encode("latin-1") + body


async def cut_off(stream: SocketStream, *pieces: bytes, times: int, pause_s: float = 0.0) -> bool:
    """Send `pieces` again and again, listening in between for `pause_s`; whether the other side ends it."""
    try:
        for _ in range(times):
            for piece in pieces:
                await stream.send(piece)
            if pause_s:
                with anyio.move_on_after(pause_s):
                    await stream.receive()
    except (anyio.BrokenResourceError, anyio.EndOfStream):
        return True
    return False


async def heard(stream: SocketStream) -> Heard:
    said, closed = b"", False
    while not closed:
        with anyio.move_on_after(QUIET_S) as waited:
            try:
                said += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                closed = True
        if waited.cancelled_caught:
            break
    return Heard(list(_answers(said)), closed)


def _answers(said: bytes) -> list[Answer]:
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert status, f"no answer begins like this: {said[:200]!r}"
        length = _LENGTH.search(head)
        size = int(length[1]) if length else len(rest)
        found.append(Answer(int(status[1]), head, rest[:size]))
        said = rest[size:]
    return found


@asynccontextmanager
async def surface(name: str, *, protocol: type[BoundedProtocol] = BoundedProtocol) -> AsyncIterator[Surface]:
    async with _app(name) as (app, token, post):
        seen: list[str] = []

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                seen.append(scope["path"])
            await app(scope, receive, send)

        async with served(watched, protocol=protocol) as url:
            yield Surface(url, token, post, seen)


@asynccontextmanager
async def _app(name: str) -> AsyncIterator[tuple[App, str, str]]:
    match name:
        case "a":
            async with stack_a() as api:
                yield _inner(api.http), "acme", "/v1/agents/agt_demo/runs"
        case "b":
            async with stack_b() as gateway:
                yield gateway.app, "acme", "/v1/chat/completions"
        case _:
            async with admin() as operators:
                yield _inner(operators.http), "platform", "/v1/admin/gateway/configurations/1:activate"


def _inner(client: httpx.AsyncClient) -> App:
    return cast("App", cast("Any", client)._transport.app)
