"""The body of a request, read within its limit, from senders that say what it is."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from ports.errors import InvalidArgument
from ports.http.headers import Headers

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

NO_BODY: Final = b"{}"
"""What is read of a request without a body."""
_JSON: Final = b"application/json"
_CONTENT_LENGTH_CHARS: Final = 18


class Disconnected(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


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


async def read_body(receive: Receive, headers: Headers, limit: int, raw: bytes | None = None) -> bytes:
    """After `check_body_headers`. `raw` is all of it, where that is here already. Raises `InvalidArgument` for what is no
    JSON or too large, and `Disconnected`.
    """
    if raw is None:
        raw = await _received(receive, limit)
    elif len(raw) > limit:
        raise _too_large(limit)
    if not raw:
        # Verbs such as `:cancel` take an optional body.
        return NO_BODY
    if headers.get(b"content-type") != _JSON and not _is_json(headers.text(b"content-type") or ""):
        raise InvalidArgument("send the body as application/json, in UTF-8", code="unsupported_media_type")
    return raw


async def _received(receive: Receive, limit: int) -> bytes:
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
