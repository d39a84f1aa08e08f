"""The kit over the machine's clock and the kit's own."""

import asyncio
from datetime import timedelta

import pytest

from adapters.system_clock import SystemClock
from conformance.clock import ManualClock
from conformance.clocks import ClockContract


class SystemClockHarness:
    async def open(self) -> SystemClock:
        return SystemClock()

    async def advance(self, delta: timedelta) -> None:
        await asyncio.sleep(delta.total_seconds())


class ManualClockHarness:
    def __init__(self) -> None:
        self._clock = ManualClock()

    async def open(self) -> ManualClock:
        return self._clock

    async def advance(self, delta: timedelta) -> None:
        await self._clock.advance(delta)


class TestSystemClock(ClockContract):
    @pytest.fixture
    def harness(self) -> SystemClockHarness:
        return SystemClockHarness()


class TestManualClock(ClockContract):
    @pytest.fixture
    def harness(self) -> ManualClockHarness:
        return ManualClockHarness()
