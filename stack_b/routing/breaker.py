"""A breaker per backend: who keeps failing is left alone for a while, then tried once.

Closed → open when at least so many of the last calls, and at least half of them, failed. Open → half open after a pause,
which doubles up to a minute. Half open lets one call through, and what becomes of it decides. (Nygard, Release It!, 2007.)
A probe (`probes.py`) opens it without calls, and ends the pause of one that answers again.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

State: TypeAlias = Literal["closed", "open", "half_open"]

LAST_CALLS: Final = 20
MIN_FAILURES: Final = 5
FAILURE_SHARE: Final = 0.5
PAUSE_S: Final = 5.0
MAX_PAUSE_S: Final = 60.0
TRIAL_S: Final = 60.0
"""A trial that was never told of counts for nothing after this: the next caller is one."""


class Breaker:
    """Of one backend. For one event loop; `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failed: deque[bool] = deque(maxlen=LAST_CALLS)
        self._pause = PAUSE_S
        self.closed_until: float | None = None
        """When an open one may be tried; None: it is closed."""
        self._trial_until = 0.0

    @property
    def state(self) -> State:
        if self.closed_until is None:
            return "closed"
        return "open" if self._monotonic() < self.closed_until else "half_open"

    @property
    def retry_after_s(self) -> float:
        """Until it may be tried; 0 where that is now."""
        return 0.0 if self.closed_until is None else max(0.0, self.closed_until - self._monotonic())

    def admits(self) -> bool:
        """Whether a call may be made now. Half open, one is: who is told yes must tell what became of it."""
        if self.closed_until is None:
            return True
        now = self._monotonic()
        if now < self.closed_until or now < self._trial_until:
            return False
        self._trial_until = now + TRIAL_S
        return True

    def succeeded(self) -> None:
        if self.closed_until is not None:
            self._failed.clear()
        self.closed_until, self._pause, self._trial_until = None, PAUSE_S, 0.0
        self._failed.append(False)

    def failed(self) -> None:
        self._failed.append(True)
        if self.closed_until is not None:
            # The trial, or a call that was on its way when it opened.
            if self.state == "half_open":
                self._open(min(2 * self._pause, MAX_PAUSE_S))
            return
        failures = sum(self._failed)
        if failures >= MIN_FAILURES and failures >= FAILURE_SHARE * len(self._failed):
            self._open(PAUSE_S)

    def unreachable(self, pause: float) -> None:
        """It was asked how it is, and did not answer: for `pause` seconds nobody need find that out by a call."""
        self._failed.append(True)
        self._open(pause)

    def reachable(self) -> None:
        """It was asked how it is, and answers: if it is open, the next call is the trial. Whether it works, a call says."""
        if self.state == "open":
            self.closed_until = self._monotonic()

    def left(self) -> None:
        """A call ended without a verdict, because its caller left: it was no trial."""
        self._trial_until = 0.0

    def _open(self, pause: float) -> None:
        self._pause = pause
        self.closed_until = self._monotonic() + pause
        self._trial_until = 0.0
