"""Upkeep: now and then, what keeps the storage from growing for ever. Any number of processes may do it."""

import logging
import random
from datetime import timedelta
from typing import Final

from ports.clock import Clock
from ports.errors import AgentOSError
from ports.maintenance import MaintenancePort
from stack_a.lease import SELF

logger = logging.getLogger("agentos.upkeep")

EVERY: Final = timedelta(hours=1)
BREATH: Final = timedelta(milliseconds=500)
"""Between two batches of a backlog: the runs of today come first."""


class Upkeep:
    """Runs and their events are kept for `retention` after their creation, and at least `MIN_RETENTION` after their end."""

    def __init__(self, maintenance: MaintenancePort, clock: Clock, *, retention: timedelta) -> None:
        self._maintenance = maintenance
        self._clock = clock
        self._retention = retention

    async def serve(self) -> None:
        """At once, and then every hour, until the task is cancelled."""
        while True:
            await self._once()
            # Jittered, so that processes started together do not do it together.
            await self._clock.sleep(EVERY * random.uniform(0.75, 1.25))  # noqa: S311 - not a secret

    async def _once(self) -> None:
        removed, more = 0, True
        try:
            while more:
                done = await self._maintenance.upkeep(SELF, retention=self._retention)
                removed, more = removed + done.runs_removed, done.more
                if more:
                    await self._clock.sleep(BREATH)
        except AgentOSError as error:
            logger.warning("upkeep.failed", extra={"code": error.code})
        if removed:
            logger.info("upkeep.done", extra={"count": removed})
