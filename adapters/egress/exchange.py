"""One request to a destination that was checked, and its answer: bounded, undecoded, never followed.

Goes through the transport instead of a client, because a client keeps cookies from one tenant's call to the next, and
may follow redirects or find a proxy in the environment.
"""

import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import httpx

from adapters.egress.guard import Destination
from ports.egress import MAX_HEAD_BYTES, Fetched, Method
from ports.errors import InvalidArgument, Unavailable

MAX_CONNECTIONS: Final = 400
"""Of all tenants, of each of which there are few (`MAX_CALLS_OF_A_TENANT`)."""
_MAX_TRIED: Final = 4
_CONNECT_SECONDS: Final = 5.0

_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,4096}")
# Ours to say: they frame the message, name the host, or would open what must stay shut.
_OURS: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "te", "trailer", "upgrade", "expect",
     "cookie"}
)  # fmt: skip


@asynccontextmanager
async def open_transport(ca_file: str) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """Connections for as long as the block runs. `ca_file`, where there is one, replaces the public authorities."""
    context = ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context(trust_env=False)
    # No connection is kept: the pool knows addresses, not names, and would lend one host's TLS session to another.
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=0)
    async with httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits) as transport:
        yield transport


def checked_headers(asked: Mapping[str, str]) -> dict[str, str]:
    """`asked` with names as they are usually written. Raises `InvalidArgument` for one that no caller may send."""
    for name, value in ((name.lower(), value) for name, value in asked.items()):
        if name in _OURS or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InvalidArgument(f"the header {name[:64]!r} is not the caller's to set, or is not one line of ASCII")
    return {name.title(): value for name, value in asked.items()}


async def exchange(
    transport: httpx.AsyncBaseTransport,
    destination: Destination,
    *,
    method: Method,
    headers: Mapping[str, str],
    body: bytes,
    max_bytes: int,
) -> Fetched:
    """Raises `Unavailable` (`upstream_error`, `upstream_timeout`)."""
    with _translated():
        response = await _first_answer(transport, destination, method, headers, body)
        try:
            told = tuple((name.lower(), value) for name, value in response.headers.multi_items())
            if sum(len(name) + len(value) + 4 for name, value in told) > MAX_HEAD_BYTES:
                raise _failed("answer", f"the server's head is over {MAX_HEAD_BYTES // 1024} KiB")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise _failed("answer", "the server answered compressed although asked not to")
            kept, truncated = await _body(response, max_bytes)
            return Fetched(status=response.status_code, headers=told, body=kept, truncated=truncated)
        finally:
            await response.aclose()


async def _first_answer(
    transport: httpx.AsyncBaseTransport,
    destination: Destination,
    method: Method,
    headers: Mapping[str, str],
    body: bytes,
) -> httpx.Response:
    """The response of the first address that takes the connection; the others are as good, all were checked."""
    url = destination.url
    *before, last = destination.addresses[:_MAX_TRIED]
    for address in (*before, last):
        request = httpx.Request(
            method,
            httpx.URL(scheme=url.scheme, host=address, port=url.port, raw_path=url.target.encode("ascii")),
            headers={
                "User-Agent": "agentos/1",
                **headers,
                "Host": url.authority,
                # A few compressed bytes can become gigabytes; plain ones can be counted as they come.
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
            content=body if method == "POST" else None,
            extensions={
                # The name for TLS, its verification included; the socket goes to the address.
                "sni_hostname": url.host,
                "timeout": {"connect": _CONNECT_SECONDS, "read": None, "write": None, "pool": None},
            },
        )
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if address == last or _concerns_tls(error):
                raise
    raise AssertionError("the last address answers or raises")


async def _body(response: httpx.Response, max_bytes: int) -> tuple[bytes, bool]:
    """At most `max_bytes` of the body, and whether there was more."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), True
    return bytes(body), False


def _concerns_tls(error: BaseException | None) -> bool:
    """Whether an error of the TLS layer is what `error` goes back to."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _translated() -> Iterator[None]:
    """httpx's errors as ours, at the one door."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise Unavailable("the server did not answer in time", code="upstream_timeout") from error
    except (httpx.TransportError, httpx.InvalidURL, httpx.StreamError) as error:
        if _concerns_tls(error):
            raise _failed("tls", "the server's certificate could not be verified") from error
        raise _failed("connect", "the server could not be reached, or broke the connection") from error


def _failed(reason: str, message: str) -> Unavailable:
    return Unavailable(message, code="upstream_error", details={"reason": reason})
