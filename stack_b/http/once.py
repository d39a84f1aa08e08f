"""What the headers of a request say of making it once."""

import math
from functools import lru_cache
from typing import Final

from ports.context import AuthContext
from ports.http.headers import Headers
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.http.parse import STEP_KEY, step_key
from stack_b.once import MAX_RETRIES, Client, Once, of_client, of_retry, of_step

RETRY_COUNT: Final = b"x-stainless-retry-count"
READ_TIMEOUTS: Final = (b"x-stainless-read-timeout", b"x-stainless-timeout")
ONCE: Final = (STEP_KEY, b"idempotency-key", RETRY_COUNT)
"""Without any of these a request is made as it comes, by a client of which nothing is known."""


def asked_once(headers: Headers, auth: AuthContext, call: ChatCall | EmbedCall, client: Client | None) -> Once | None:
    """The key that the request is made under; None for one that is made as it comes.

    Raises:
        InvalidArgument: a header that can't be a key.
    """
    given = headers.text(STEP_KEY)
    if given is not None:
        return of_step(auth, step_key(given))
    given = headers.idempotency_key()
    if given is not None:
        return of_client(auth, call.route, given)
    if client is not None and client.retries > 0:
        return of_retry(auth, call, client.retries)
    return None


def client_of(headers: Headers) -> Client | None:
    """None for a client that does not say how often it has tried. What makes no sense is not said."""
    count = headers.text(RETRY_COUNT)
    if count is None:
        return None
    return _client(count, next((found for name in READ_TIMEOUTS if (found := headers.text(name)) is not None), None))


@lru_cache(maxsize=256)
def _client(count: str, waits: str | None) -> Client | None:
    """Remembered: the clients of an application all say the same."""
    if not (count.isascii() and count.isdigit() and len(count) <= len(str(MAX_RETRIES))):
        return None
    return Client(retries=int(count), waits_s=_seconds(waits))


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
