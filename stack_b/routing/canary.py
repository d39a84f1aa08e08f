"""Who is in an experiment, and when an experiment is over. The draw is pure; the watch counts."""

import hashlib
from collections import deque
from typing import Final

LAST_CALLS: Final = 50
LEAST_CALLS: Final = 20
"""Fewer say nothing."""
_PARTS: Final = 1_000_000


def drawn(experiment: str, caller: tuple[str, ...], percent: float) -> bool:
    """Whether `caller` is among the `percent`: always the same answer, and still yes when `percent` grows.

    Each caller has a place between 0 and 100 that only the experiment and its own identity decide.
    """
    digest = hashlib.sha256("\0".join((experiment, *caller)).encode()).digest()
    return int.from_bytes(digest[:8]) % _PARTS < percent * _PARTS / 100


class Watch:
    """Of one experiment, in this process: rolled back once its error rate is beyond what it may be, for good."""

    def __init__(self, max_error_rate: float) -> None:
        self._most = max_error_rate
        self._failed: deque[bool] = deque(maxlen=LAST_CALLS)
        self.rolled_back = False

    def ended(self, *, failed: bool) -> bool:
        """Count a call. True when it was the one that ended the experiment."""
        if self.rolled_back:
            return False
        self._failed.append(failed)
        self.rolled_back = len(self._failed) >= LEAST_CALLS and sum(self._failed) > self._most * len(self._failed)
        return self.rolled_back
