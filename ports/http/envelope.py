"""The error envelope and the one table from error code to HTTP status.

`{"error": {"code", "message", "retryable", "details", "correlation_id"}}` on every surface. A surface may add members
inside `error` (Stack B adds OpenAI's `type` and `param`), never outside: clients' SDKs expose that object only.
"""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec

from ports.errors import AgentOSError, Internal

STATUS: Final[Mapping[str, int]] = {
    "invalid_json": 400,
    "invalid_request": 400,
    "idempotency_key_required": 400,
    "context_length_exceeded": 400,
    "request_exceeds_budget": 400,
    "unsupported": 400,
    "unauthenticated": 401,
    "insufficient_scope": 403,
    "tenant_mismatch": 403,
    "tenant_disabled": 403,
    "policy_blocked": 403,
    "model_not_entitled": 403,
    "tool_not_permitted": 403,
    "peer_forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "legal_hold": 409,
    "hold_released": 409,
    "runs_open": 409,
    "too_many_holds": 409,
    "too_many_keys": 409,
    "idempotency_in_progress": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "validation_failed": 422,
    "idempotency_key_reused": 422,
    "unsafe_url": 422,
    "rate_limited": 429,
    "concurrency_limited": 429,
    "budget_exceeded": 429,
    "budget_in_flight": 429,
    "internal": 500,
    "upstream_error": 502,
    "upstream_auth_error": 502,
    "unavailable": 503,
    "upstream_timeout": 504,
}
"""Codes that reach a client. Codes that exist only inside a run are not in it."""

LATER: Final = frozenset({429, 503})
"""Statuses that say when to come back, where coming back may help."""
COME_BACK_AFTER: Final = timedelta(seconds=2)
"""What they say where the error does not know better: soon after an outage's end, and not all the time before it."""


def status_of(error: AgentOSError) -> int:
    return STATUS.get(error.code, 500)


def body_of(error: AgentOSError, correlation_id: str, extra: Mapping[str, Any] | None = None) -> bytes:
    """The JSON of the envelope."""
    return msgspec.json.encode({"error": members_of(error, correlation_id, extra)})


def members_of(error: AgentOSError, correlation_id: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is inside the envelope. The text of an internal error is withheld; the log has it."""
    withheld = isinstance(error, Internal)
    members: dict[str, Any] = {
        "code": error.code,
        "message": "an internal error; quote the correlation id to the operator" if withheld else error.message,
        "retryable": error.retryable,
        "details": {} if withheld else error.details,
        "correlation_id": correlation_id,
    }
    members.update(extra or {})
    return members


def headers_of(error: AgentOSError, *, token_sent: bool) -> list[tuple[bytes, bytes]]:
    """What the status asks for beside the body: `WWW-Authenticate`, `Retry-After`, `x-should-retry`."""
    headers: list[tuple[bytes, bytes]] = []
    status = status_of(error)
    if status == 401:  # noqa: PLR2004 - HTTP's own numbers
        headers.append((b"www-authenticate", b'Bearer error="invalid_token"' if token_sent else b"Bearer"))
    wait = error.retry_after
    if wait is None and error.retryable and status in LATER:
        wait = COME_BACK_AFTER
    if wait is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(wait.total_seconds()))).encode()))
    # What SDKs retry by themselves, and what a proxy in between may take for a passing refusal.
    if status in {403, 409, 429} or status >= 500:  # noqa: PLR2004 - HTTP's own numbers
        headers.append((b"x-should-retry", b"true" if error.retryable else b"false"))
    return headers
