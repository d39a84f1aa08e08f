"""A web server on loopback that answers with the bytes it was given, with or without TLS, and remembers requests."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener, TLSStream


@dataclass
class Origin:
    """`answers` by path; a path without an answer is never answered."""

    answers: Mapping[str, bytes]
    port: int = 0
    requests: list[str] = field(default_factory=list)
    open_connections: int = 0

    async def serve(self, stream: ByteStream) -> None:
        self.open_connections += 1
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            self.requests.append(head.decode())
            path = head.split(b" ")[1].decode()
            if path in self.answers:
                await stream.send(self.answers[path])
            else:
                # Until the client goes.
                await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self.open_connections -= 1
            # A client that left in the middle is no reason to wait for its goodbye.
            with anyio.move_on_after(1, shield=True):
                await (anyio.aclose_forcefully(stream) if isinstance(stream, TLSStream) else stream.aclose())


def answer(body: bytes, *, status: str = "200 OK", **headers: str) -> bytes:
    """A response; header names in keyword form, such as `content_type`."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def serving(answers: Mapping[str, bytes], *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Origin]:
    origin = Origin(answers)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        origin.port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # anyio's, not Django's
        if tls is None:
            group.start_soon(listener.serve, origin.serve)
        else:
            wrapped = TLSListener(listener, tls, standard_compatible=False)
            group.start_soon(wrapped.serve, origin.serve)
        yield origin
        group.cancel_scope.cancel()
