"""Opening a connection to where a URL points: addresses raced, TLS verified, no proxy whatever the environment says."""

import asyncio
import itertools
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import certifi

from ports.errors import InvalidArgument
from stack_b.backends.connection import Connection

Dial: TypeAlias = Callable[[Callable[[], Connection]], Awaitable[Connection]]
"""Opens one connection around the protocol it is given. Raises `OSError`."""

_HEAD_START_S: Final = 0.25
"""Of each address before the next one is tried beside it (RFC 8305)."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_Address: TypeAlias = tuple[Any, ...]  # the socket module's, which differs by family
_Info: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, _Address]


def split_url(url: str) -> SplitResult:
    """Raises `InvalidArgument` for what is no address of a backend. Quotes nothing of the URL: it may hold a secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
        usable = usable and (parts.path + parts.query).isascii()
        (parts.hostname or "").encode("idna")
    except ValueError:  # UnicodeError, too
        usable = False
    if not usable or any(character <= " " or character == "\x7f" for character in url):
        raise InvalidArgument("a backend's base_url is http:// or https://, a host, perhaps a port and a path")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument("a backend's base_url holds no credentials; give them as its api_key")
    return parts


def host_header(parts: SplitResult) -> str:
    host = _ascii(parts)
    named = f"[{host}]" if ":" in host else host
    return named if parts.port in {None, _DEFAULT_PORTS[parts.scheme]} else f"{named}:{parts.port}"


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Certificates are verified against `ca_file` alone, or else the system's authorities and those of Mozilla's list.

    Raises:
        InvalidArgument: `ca_file` can't be read as certificates.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise InvalidArgument(f"{ca_file} is not a file of certificates: {error}") from None
    if not ca_file:
        # A slim container has no authorities of its own.
        context.load_verify_locations(certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def dial(parts: SplitResult, context: ssl.SSLContext | None) -> Dial:
    """How to reach the host of `parts`; with a `context`, over TLS under that name."""
    host, port = _ascii(parts), parts.port or _DEFAULT_PORTS[parts.scheme]

    async def connected(protocol: Callable[[], Connection]) -> Connection:
        loop = asyncio.get_running_loop()
        infos = await _addresses(host, port)
        reached = await (_connect(infos[0]) if len(infos) == 1 else _race(infos))
        try:
            _, connection = await loop.create_connection(
                protocol, sock=reached, ssl=context, server_hostname=host if context is not None else None
            )
        except BaseException:
            reached.close()
            raise
        return connection

    return connected


def _ascii(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return host if host.isascii() else host.encode("idna").decode()


async def _addresses(host: str, port: int) -> list[_Info]:
    """Families by turns, the resolver's first choice first: where one of them leads nowhere, the other is near."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    first = [info for info in infos if info[0] == infos[0][0]]
    others = [info for info in infos if info[0] != infos[0][0]]
    return [info for pair in itertools.zip_longest(first, others) for info in pair if info is not None]


async def _race(infos: Sequence[_Info]) -> socket.socket:
    """A socket connected to the address that answers first. Raises the first one's `OSError` if none does."""
    waiting = deque(infos)
    attempts: list[asyncio.Task[socket.socket]] = []
    won: asyncio.Task[socket.socket] | None = None
    try:
        while won is None and (waiting or not all(attempt.done() for attempt in attempts)):
            if waiting:
                attempts.append(asyncio.create_task(_connect(waiting.popleft())))
            under_way = [attempt for attempt in attempts if not attempt.done()]
            patience = _HEAD_START_S if waiting else None
            await asyncio.wait(under_way, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            won = next((attempt for attempt in attempts if attempt.done() and attempt.exception() is None), None)
        if won is None:
            raise attempts[0].exception() or OSError("no address")
        return won.result()
    finally:
        for attempt in attempts:
            if attempt is not won:
                attempt.cancel()
                attempt.add_done_callback(_give_up)


def _give_up(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _connect(info: _Info) -> socket.socket:
    family, kind, protocol, _, address = info
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, address)
    except BaseException:
        opened.close()
        raise
    return opened
