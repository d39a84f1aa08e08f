"""Correlation id and W3C trace context: kept from a client when well-formed, else made here."""

import os
import re
from typing import Final

from ports.context import Trace
from ports.randoms import Randoms

_CORRELATION: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SPAN_BYTES: Final = 24
"""Of a trace id and a span id."""
_RANDOMS: Final = Randoms(16 + _SPAN_BYTES)
"""All that is random of a request."""


def trace_from(correlation_id: str | None, traceparent: str | None) -> Trace:
    """The request's trace: the client's ids where they are valid, a new span of the client's trace or of a new one."""
    random = _RANDOMS.take()
    if correlation_id is None and traceparent is None:
        return Trace(correlation_id=f"cor_{random[:32]}", traceparent=f"00-{random[32:64]}-{random[64:]}-01")
    kept = correlation_id if correlation_id and _CORRELATION.fullmatch(correlation_id) else f"cor_{random[:32]}"
    return Trace(correlation_id=kept, traceparent=_continued(traceparent, random[32:]))


def child(traceparent: str) -> str:
    """A new span under `traceparent`, for an outgoing call."""
    return _continued(traceparent, os.urandom(_SPAN_BYTES).hex())


def _continued(traceparent: str | None, random: str) -> str:
    """`random`: `_SPAN_BYTES` in hexadecimal, for a trace and a span."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match:
        version, trace_id, parent, flags = match.groups()
        if version != "ff" and trace_id != "0" * 32 and parent != "0" * 16:
            return f"00-{trace_id}-{random[32:]}-{flags}"
    return f"00-{random[:32]}-{random[32:]}-01"
