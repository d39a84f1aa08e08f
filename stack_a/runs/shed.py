"""Refuse new runs while the node has more than it can do: better a quick "later" than a slow everything.

Two things are measured, by one look at the queue each second at most, made by a request that comes along, for a run or for
the metrics: how many messages all tenants have waiting, and how long the look took, which stands for how the database is.
"""

from datetime import timedelta
from typing import Final

from observability.metrics import Metrics
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Unavailable
from ports.queue import QueuePort
from stack_a.deps import Shedding

LOOK_EVERY: Final = timedelta(seconds=1)
_BACKLOG_WAIT: Final = timedelta(seconds=5)
_DATABASE_WAIT: Final = timedelta(seconds=2)


class Shedder:
    def __init__(
        self, queue: QueuePort, clock: Clock, limits: Shedding, identity: AuthContext, metrics: Metrics
    ) -> None:
        """`identity` may count every tenant's messages."""
        self._queue = queue
        self._clock = clock
        self._limits = limits
        self._identity = identity
        self._metrics = metrics
        self._depth = 0
        self._slow = False
        self._began: float | None = None
        """When the look that is under way began."""
        self._ended: float | None = None

    async def check_database(self) -> None:
        """Raise `Unavailable` while the database is slow or does not answer. Asks it nothing but the one look."""
        await self.look()
        if self._slow or self._overdue:
            raise Unavailable(
                "the node's database is slow or does not answer; try again later", retry_after=_DATABASE_WAIT
            )

    def check_backlog(self) -> None:
        """Raise `Unavailable` while more is queued than the node wants to promise."""
        if self._depth > self._limits.max_queue_depth:
            raise Unavailable(
                f"the node is overloaded: {self._depth:,} runs wait, of all tenants; try again later",
                retry_after=_BACKLOG_WAIT,
            )

    async def look(self) -> None:
        """Count what waits, unless somebody has just done so or is about it. Raises nothing."""
        now = self._clock.monotonic()
        fresh = self._ended is not None and now - self._ended < LOOK_EVERY.total_seconds()
        if fresh or self._began is not None:
            return
        self._began = now
        try:
            depth = await self._queue.depth(self._identity)
            self._depth = depth.ready + depth.leased
            self._metrics.queue_depth(self._depth)
            self._slow = self._is_slow(self._clock.monotonic() - now)
        except AgentOSError:
            self._slow = True
        finally:
            self._began, self._ended = None, self._clock.monotonic()

    @property
    def _overdue(self) -> bool:
        return self._began is not None and self._is_slow(self._clock.monotonic() - self._began)

    def _is_slow(self, seconds: float) -> bool:
        return seconds > self._limits.slow_after.total_seconds()
