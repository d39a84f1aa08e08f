"""The machine's clock."""

import asyncio
import time
from datetime import UTC, datetime, timedelta


class SystemClock:
    """Satisfies `ports.clock.Clock`."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    # Asked a dozen times by each request of the gateway: not through a function of ours.
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, duration: timedelta) -> None:
        # The event loop may wake a timer a clock tick early; CLK-3 promises at least the given time.
        until = time.monotonic() + duration.total_seconds()
        while (left := until - time.monotonic()) > 0:  # noqa: ASYNC110 - waits for time itself, there is no event
            await asyncio.sleep(left)
