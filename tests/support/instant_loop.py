"""An event loop that does not wait: when nothing is ready, its time jumps to the next timer.

A time limit thus ends what hangs at once, and never ends what is only slow: time passes while the loop is idle, and by
a millisecond per turn, so that a loop which turns for ever meets its limit too.
"""

import asyncio
import selectors
from datetime import UTC, datetime, timedelta
from typing import Final

_TURN_S: Final = 0.001


class _InstantSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        self.passed += _TURN_S if ready else max(timeout, _TURN_S)
        return ready


class InstantClock:
    """The time of the `InstantLoop` that runs. Satisfies `ports.clock.Clock`."""

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(max(0.0, duration.total_seconds()))


class InstantLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._instant = _InstantSelector()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.passed
