"""ManualClock: time that moves when a test says so."""

from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
import anyio.lowlevel

EPOCH: Final = datetime(2030, 1, 1, 12, tzinfo=UTC)
"""Noon, so that a test may move some hours without meeting the end of a budget window."""

_SETTLING_STEPS: Final = 20
"""How often `advance` lets other tasks run, so that what was woken gets to act."""


class ManualClock:
    """Satisfies `ports.clock.Clock`. Shared by everything in one event loop."""

    def __init__(self, start: datetime = EPOCH) -> None:
        self._start = start
        self._passed = timedelta(0)
        self._sleepers: list[tuple[timedelta, anyio.Event]] = []

    def now(self) -> datetime:
        return self._start + self._passed

    def monotonic(self) -> float:
        return self._passed.total_seconds()

    async def sleep(self, duration: timedelta) -> None:
        sleeper = (self._passed + duration, anyio.Event())
        if duration <= timedelta(0):
            await anyio.lowlevel.checkpoint()
            return
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers.remove(sleeper)

    async def advance(self, delta: timedelta) -> None:
        """Move time, wake whoever is due, and let them act before returning."""
        assert delta >= timedelta(0), "time does not go back"
        self._passed += delta
        for due, event in self._sleepers:
            if due <= self._passed:
                event.set()
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(_SETTLING_STEPS):
            await anyio.lowlevel.checkpoint()
