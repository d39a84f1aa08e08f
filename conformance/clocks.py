"""What every Clock must show. Clauses: `ports.clock`."""

from datetime import timedelta
from typing import Final

import anyio
import anyio.lowlevel
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import ClockHarness
from conformance.waiting import PATIENCE_S, while_time_passes

SHORT: Final = timedelta(milliseconds=20)


@pytest.mark.anyio
class ClockContract(Contract):
    @clause("CLK-1")
    async def test_now_is_aware_and_in_utc(self, harness: ClockHarness) -> None:
        clock = await harness.open()

        assert clock.now().utcoffset() == timedelta(0)

    @clause("CLK-2")
    async def test_monotonic_never_goes_back(self, harness: ClockHarness) -> None:
        clock = await harness.open()

        readings = []
        for _ in range(5):
            readings.append(clock.monotonic())
            await harness.advance(SHORT)

        assert readings == sorted(readings)
        assert readings[-1] - readings[0] >= (4 * SHORT).total_seconds()

    @clause("CLK-3")
    async def test_sleep_returns_once_the_time_has_passed(self, harness: ClockHarness) -> None:
        clock = await harness.open()
        before = clock.monotonic()

        error = await while_time_passes(lambda: clock.sleep(SHORT), harness.advance, SHORT / 4)

        assert error is None
        assert clock.monotonic() - before >= SHORT.total_seconds()

    @clause("CLK-3")
    @pytest.mark.parametrize("duration", [timedelta(0), timedelta(seconds=-1)])
    async def test_no_time_at_all_returns_by_itself(self, harness: ClockHarness, duration: timedelta) -> None:
        clock = await harness.open()

        with anyio.fail_after(PATIENCE_S):
            await clock.sleep(duration)

    @clause("CLK-3")
    async def test_sleep_is_cancellable(self, harness: ClockHarness) -> None:
        clock = await harness.open()

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(clock.sleep, timedelta(hours=1))
                await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
