"""Correlation id and W3C trace context: kept from a client when well-formed, else made here."""

import re
import secrets
from typing import Final

from ports.context import Trace

_CORRELATION: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def trace_from(correlation_id: str | None, traceparent: str | None) -> Trace:
    """The request's trace: the client's ids where they are valid, a new span of the client's trace or of a new one."""
    kept = correlation_id if correlation_id and _CORRELATION.fullmatch(correlation_id) else None
    return Trace(correlation_id=kept or f"cor_{secrets.token_hex(16)}", traceparent=_continued(traceparent))


def child(traceparent: str) -> str:
    """A new span under `traceparent`, for an outgoing call."""
    return _continued(traceparent)


def _continued(traceparent: str | None) -> str:
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match:
        version, trace_id, parent, flags = match.groups()
        if version != "ff" and trace_id != "0" * 32 and parent != "0" * 16:
            return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
