"""What is counted and logged of every HTTP request, on every surface: an `Observe` for `ports.http.edge.Edge`."""

import logging
from typing import Final

from observability.logs import who
from observability.metrics import Metrics
from ports.http.edge import Exchange, Observe

EVENT_STREAM: Final = "/events"
_IDENTITY_CODES: Final = frozenset(
    {"unauthenticated", "insufficient_scope", "tenant_mismatch", "tenant_disabled", "peer_forbidden"}
)

logger = logging.getLogger("agentos.http")


def observer(metrics: Metrics) -> Observe:
    """Counts each request by its template, and logs it at a level that fits its outcome."""

    def observe(found: Exchange, method: str, status: int, seconds: float) -> None:
        # A stream lasts as long as its run: among requests its duration would say nothing.
        timed = None if found.template.endswith(EVENT_STREAM) else seconds
        metrics.http_request(route=found.template, method=method, status=status, seconds=timed)
        if found.refusal in _IDENTITY_CODES:
            metrics.auth_failure(found.refusal)
        level = logging.DEBUG if status < 400 else logging.INFO if status < 500 else logging.WARNING  # noqa: PLR2004 - HTTP's
        if not logger.isEnabledFor(level):
            return
        fields = {
            "route": found.template,
            "method": method,
            "status": status,
            "duration_ms": round(seconds * 1_000, 3),
            "correlation_id": found.trace.correlation_id,
            **({"code": found.refusal} if found.refusal else {}),
            **(who(found.auth) if found.auth else {}),
        }
        logger.log(level, "http.completed", extra=fields)

    return observe
