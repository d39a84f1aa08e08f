"""A server of bytes that does to each request what a test's script says: whatever a backend may do to us on the wire.

`tests.support.scripted_upstream` answers in HTTP that is well formed; this one need not.
"""

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import anyio

OK: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


@dataclass(frozen=True)
class Drip:
    """Byte by byte, each in a packet of its own."""

    data: bytes


@dataclass(frozen=True)
class Flood:
    """The same bytes again and again until the caller has gone. `of` them at most."""

    data: bytes
    of: int = 1 << 30


@dataclass(frozen=True)
class Stall:
    """Nothing more, until the caller goes or `resume` is set."""


@dataclass(frozen=True)
class Cut:
    """The connection ends; with `reset`, not in good order."""

    reset: bool = False


Step: TypeAlias = bytes | Drip | Flood | Stall | Cut
Script: TypeAlias = Sequence[Step] | Callable[[bytes], Sequence[Step]]
"""What is done to a request, or how that is found out from it."""


@dataclass
class RoughBackend:
    """Does the steps of the next script of `scripts` to each request; the last one again and again."""

    scripts: list[Script]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    """How many there have been."""
    flooded: int = 0
    """Bytes of floods that the caller's side has taken, its kernel included."""
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    resume: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a caller's connection has ended."""
    lines: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.lines.add(writer)
        plain = writer.get_extra_info("socket")
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                self.requests.append(await _request(reader))
                script = self.scripts[0] if len(self.scripts) == 1 else self.scripts.pop(0)
                for step in script(self.requests[-1]) if callable(script) else script:
                    await self._do(step, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.lines.discard(writer)
            writer.close()
            self.gone.set()

    def hang_up(self) -> None:
        """End every connection that is open, idle ones included; the kernel knows at once."""
        for writer in tuple(self.lines):
            theirs = writer.get_extra_info("socket")
            if theirs is not None and theirs.fileno() >= 0:
                # uvloop's sockets can't be shut down but through another name of the same one.
                with suppress(OSError), socket.fromfd(theirs.fileno(), theirs.family, theirs.type) as same:
                    same.shutdown(socket.SHUT_RDWR)
            writer.close()

    async def _do(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match step:
            case bytes():
                writer.write(step)
                await writer.drain()
            case Drip(data):
                for at in range(len(data)):
                    writer.write(data[at : at + 1])
                    await writer.drain()
                    # Lets the caller's side read before the next one, as both are in one loop.
                    await asyncio.sleep(0)
            case Flood(data, of):
                while self.flooded < of:
                    writer.write(data)
                    await writer.drain()
                    self.flooded += len(data)
            case Stall():
                self.stalled.set()
                await _first(self.resume.wait(), reader.read(1))
                if not self.resume.is_set():
                    raise ConnectionError
            case Cut(reset):
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                raise ConnectionError


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def whole(body: bytes, *, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """A response that says how long it is, or claims to; header names in keyword form, such as `retry_after`."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(data: bytes) -> bytes:
    """One event of a stream, in a chunk of its own."""
    return chunk(b"data: " + data + b"\n\n")


@asynccontextmanager
async def rough_backend(*scripts: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[RoughBackend]:
    backend = RoughBackend(list(scripts))
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    backend.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
    try:
        yield backend
    finally:
        server.close()
        backend.hang_up()
        with anyio.fail_after(10, shield=True):
            while backend.lines:
                await anyio.lowlevel.checkpoint()
