"""Clock: time is given, so that leases, deadlines and back-off are tested without waiting.

Clauses:

* CLK-1  `now` is aware, in UTC.
* CLK-2  `monotonic` never goes back, and is unrelated to `now`: durations and self-fencing use it.
* CLK-3  `sleep` returns once `monotonic` has advanced by at least the given time, and is cancellable.
"""

from datetime import datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime: ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin."""
        ...

    async def sleep(self, duration: timedelta) -> None: ...
