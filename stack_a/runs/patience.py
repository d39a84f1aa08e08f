"""How often a call that failed is made again, and after which wait. Decides; whoever asks does the waiting."""

import random
from datetime import timedelta
from typing import Final

from ports.errors import AgentOSError, Unavailable

FIRST_BACKOFF: Final = timedelta(milliseconds=500)
MAX_BACKOFF: Final = timedelta(seconds=5)
"""Also how late, at most, a call begins after the outage that it waits for."""
MAX_TOLD: Final = timedelta(minutes=1)
"""The longest `retry_after` that is waited for: meanwhile the run holds its slot."""


class Patience:
    """One call's. `attempts` is how often it may fail in all, if it fails in ways that count."""

    def __init__(self, attempts: int, *, outlasts: bool = False) -> None:
        """`outlasts`: outages don't count, because something else ends the call that waits for their end."""
        self._left = attempts
        self._outlasts = outlasts
        self._failures = 0

    def wait_after(self, error: AgentOSError) -> timedelta | None:
        """How long to wait before the next attempt; None: there is none."""
        if not error.retryable:
            return None
        told = error.retry_after or timedelta(0)
        if not (self._outlasts and is_outage(error)):
            self._left -= 1
            if self._left <= 0 or told > MAX_TOLD:
                return None
        # Doubled no further than has a meaning: an outage has no number of attempts.
        backoff = min(FIRST_BACKOFF * (1 << min(self._failures, 10)), MAX_BACKOFF)
        self._failures += 1
        # Jittered downwards, so that those who waited together do not come back together.
        return max(backoff * random.uniform(0.75, 1), min(told, MAX_TOLD))  # noqa: S311 - not a secret


def is_outage(error: AgentOSError) -> bool:
    """Whether nobody was there to act: nothing was done, or what was done is kept under the step's key.

    So a repetition costs nothing, and the next one may find somebody. A provider that was reached and failed
    (`upstream_error`, `upstream_timeout`) may have done the work, and may fail at this very request; a refusal (rate,
    budget) is an answer. Those are asked again a few times only.
    """
    if error.code == "idempotency_in_progress":
        return True
    return isinstance(error, Unavailable) and (error.code == "unavailable" or error.details.get("sent") is False)
