"""The body of a request, read within its limit, from senders that say what it is."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Final, TypeAlias

from ports.context import AuthContext
from ports.errors import InvalidArgument, ResourceExhausted
from ports.http.headers import Headers
from ports.ids import TenantId

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Came: TypeAlias = Callable[[int], None]
"""Told how long each part of a body is."""

NO_BODY: Final = b"{}"
"""What is read of a request without a body."""
MOST_ARRIVING: Final = 128 * 1024 * 1024
"""Bytes of a tenant's bodies that are not whole yet, in one process."""
_AGAIN: Final = timedelta(seconds=2)
_JSON: Final = b"application/json"
_CONTENT_LENGTH_CHARS: Final = 18


class Disconnected(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


class Arriving:
    """What is held of bodies that are not whole yet, so that no tenant's slow ones take the memory of all."""

    def __init__(self, most: int = MOST_ARRIVING) -> None:
        """`most`: of one tenant."""
        self._most = most
        self._held: Counter[TenantId | None] = Counter()

    @contextmanager
    def of(self, auth: AuthContext | None) -> Iterator[Came]:
        """While a body of the caller's arrives. What it gives is told of each part of it, and raises `ResourceExhausted`
        for one too many."""
        tenant = None if auth is None else auth.tenant
        mine = 0

        def came(size: int) -> None:
            nonlocal mine
            if self._held[tenant] + size > self._most:
                raise ResourceExhausted(
                    f"more than {self._most} bytes of this tenant's requests are on their way; send fewer at a time, or "
                    "each of them faster",
                    code="concurrency_limited",
                    retry_after=_AGAIN,
                )
            self._held[tenant] += size
            mine += size

        try:
            yield came
        finally:
            self._held[tenant] -= mine
            if not self._held[tenant]:
                del self._held[tenant]


def check_body_headers(headers: Headers, limit: int) -> None:
    """What a head says of its body. Raises `InvalidArgument` for what is not taken or too large."""
    if b"content-encoding" in headers:
        raise InvalidArgument("Content-Encoding is not taken on requests", code="unsupported_media_type")
    announced = headers.get(b"content-length")
    if announced is not None:
        if not announced.isdigit():
            raise InvalidArgument("Content-Length must be a number")
        # By its length first: a number of a million digits takes long to read.
        if len(announced) > _CONTENT_LENGTH_CHARS or int(announced) > limit:
            raise _too_large(limit)


async def read_body(
    receive: Receive, headers: Headers, limit: int, raw: bytes | None, coming: AbstractContextManager[Came]
) -> bytes:
    """After `check_body_headers`. `raw` is all of it, where that is here already. Raises `InvalidArgument` for what is no
    JSON or too large, `ResourceExhausted` as `coming` does, and `Disconnected`.
    """
    if raw is None:
        with coming as came:
            raw = await _received(receive, limit, came)
    elif len(raw) > limit:
        raise _too_large(limit)
    if not raw:
        # Verbs such as `:cancel` take an optional body.
        return NO_BODY
    if headers.get(b"content-type") != _JSON and not _is_json(headers.text(b"content-type") or ""):
        raise InvalidArgument("send the body as application/json, in UTF-8", code="unsupported_media_type")
    return raw


async def _received(receive: Receive, limit: int, came: Came) -> bytes:
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        came(len(chunk))
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _is_json(content_type: str) -> bool:
    media, _, parameters = content_type.lower().partition(";")
    return media.strip() == "application/json" and parameters.replace('"', "").strip() in {"", "charset=utf-8"}


def _too_large(limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"the body is larger than {limit} bytes", code="payload_too_large", details={"max_body_bytes": limit}
    )
