"""When keys were used last: remembered here, written seldom and for many at once. No request waits for it."""

from datetime import datetime, timedelta
from typing import Final

from ports.clock import Clock
from ports.errors import AgentOSError
from ports.ids import KeyId
from ports.recent import Recent
from ports.tenant import TenantDirectory

NOTED_EVERY: Final = timedelta(seconds=30)
GRAIN: Final = timedelta(minutes=5)
"""A key in use is written about no oftener, by each process."""
_MAX_WRITTEN: Final = 8_192
_MAX_WAITING: Final = 4_096
"""Keys to be written about. What is beyond is told the next time that it is used."""


class Uses:
    def __init__(self, tenants: TenantDirectory, clock: Clock) -> None:
        self._tenants = tenants
        self._clock = clock
        self._written: Recent[KeyId, bool] = Recent(_MAX_WRITTEN)
        self._waiting: dict[KeyId, datetime] = {}

    def note(self, key: KeyId) -> None:
        now = self._clock.monotonic()
        if self._written.get(key, now) is None and (key in self._waiting or len(self._waiting) < _MAX_WAITING):
            self._waiting[key] = self._clock.now()

    async def write(self) -> None:
        """What waits. A directory that doesn't answer is asked again with what comes next."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        until = self._clock.monotonic() + GRAIN.total_seconds()
        for key in waiting:
            self._written.put(key, True, until=until)
        try:
            await self._tenants.keys_used(waiting)
        except AgentOSError:
            for key in waiting:
                self._written.drop(key)
