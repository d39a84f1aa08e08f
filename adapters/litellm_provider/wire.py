"""How LiteLLM reaches the network: one request per call over connections of the adapter's own. Imports httpx.

LiteLLM sends again what broke off while connecting, follows redirects with the key, and takes proxies from the environment.
Here a call has one request in it; nothing is followed, and nobody in between is asked.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httpx

from adapters.litellm_provider.errors import Seen
from adapters.litellm_provider.makers import MAKERS
from ports.provider import Endpoint

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
MAX_CONNECTIONS: Final = 256
ROOM_S: Final = 5.0
"""How long a call waits for a connection."""
_IDENTITY: Final = "identity"
_OK: Final = 200


def connections() -> httpx.AsyncHTTPTransport:
    """A pool. Its certificates are httpx's usual ones; the environment's `SSL_CERT_FILE` is heeded."""
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=32, keepalive_expiry=30.0)
    return httpx.AsyncHTTPTransport(limits=limits, retries=0)


class OneCall(httpx.AsyncBaseTransport):
    """The transport of one call. `seen` says what became of it; `aclose` ends it at the provider, if it isn't over."""

    def __init__(self, pool: httpx.AsyncHTTPTransport, at: Endpoint, *, first_byte_s: float) -> None:
        self._pool = pool
        self._at = at
        self._first_byte_s = first_byte_s
        self._asked = False
        self._body: _Body | None = None
        self.seen = Seen()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._asked:
            raise httpx.ReadError("a call is one request", request=request)
        self._asked = True
        at, seen = self._at, self.seen
        request.headers["accept-encoding"] = _IDENTITY
        request.headers["user-agent"] = "agentos"
        request.extensions["timeout"] = {
            "connect": at.connect_s, "read": at.next_byte_s, "write": at.next_byte_s, "pool": ROOM_S,
        }  # fmt: skip
        try:
            async with asyncio.timeout(at.connect_s + ROOM_S + self._first_byte_s):
                answer = await self._pool.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            # Not by its own name, under which it would be sent again.
            raise httpx.ReadError("there is no connection", request=request) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            seen.sent = seen.timed_out = True
            raise httpx.ReadTimeout("it did not answer in time", request=request) from error
        except httpx.HTTPError:
            seen.sent = True
            raise
        seen.sent, seen.status = True, answer.status_code
        seen.retry_after = answer.headers.get("retry-after", "")
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        self._body = _Body(answer.stream, seen, MAKERS[at.provider].ends_with)
        if answer.status_code == _OK and answer.headers.get("content-encoding", _IDENTITY).lower() != _IDENTITY:
            await self.aclose()
            raise httpx.DecodingError("it compresses its answer although it was asked not to", request=request)
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=self._body, extensions=answer.extensions
        )

    async def aclose(self) -> None:
        if self._body is not None:
            await self._body.aclose()


class _Body(httpx.AsyncByteStream):
    """An answer's bytes, as many as may be."""

    def __init__(self, stream: httpx.AsyncByteStream, seen: Seen, ends_with: bytes) -> None:
        self._stream = stream
        self._seen = seen
        self._ends_with = ends_with
        self._open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, last = 0, b""
        seam = max(1, len(self._ends_with) - 1)
        try:
            async for piece in self._stream:
                size += len(piece)
                if not self._seen.ended:
                    self._seen.ended = self._ends_with in last + piece
                    last = (last + piece)[-seam:]
                if size > MAX_ANSWER_BYTES:
                    self._seen.too_large = True
                    raise httpx.ReadError("it says more than will be read")
                yield piece
        except httpx.TimeoutException:
            self._seen.timed_out = True
            raise

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await self._stream.aclose()
