"""What becomes of a hint that was leased: when it is acknowledged, and who keeps it until then.

With `accept` a hint is acknowledged once its run is claimed: from there on the run itself says that it needs a worker. With
`complete` it stays leased for as long as a worker has the run in hand, and is acknowledged when nothing is left to do for a
worker: the run has ended, or is parked. That is for those who count unacknowledged messages, such as an autoscaler.
"""

import contextlib
import logging
from datetime import timedelta
from typing import Final, Literal, TypeAlias

from ports.clock import Clock
from ports.errors import AgentOSError, Conflict, NotFound
from ports.ids import RunId
from ports.queue import Delivery, QueuePort
from ports.run_state import RunStatePort, RunStatus
from stack_a.lease import SELF

logger = logging.getLogger("agentos.worker")

Ack: TypeAlias = Literal["accept", "complete"]

HINT_LEASE: Final = timedelta(seconds=10)
EXTEND_EVERY: Final = HINT_LEASE / 4
"""Two of these may fail in a row."""
HELD_ELSEWHERE: Final = timedelta(seconds=5)
"""How long a hint stays leased whose run another worker has in hand: that worker ends it, or is gone soon."""


class KeptHint:
    """One hint, leased until its run needs no worker any more."""

    def __init__(self, queue: QueuePort, run_state: RunStatePort, clock: Clock, delivery: Delivery) -> None:
        self._queue = queue
        self._run_state = run_state
        self._clock = clock
        self._delivery = delivery

    async def extend(self, run_id: RunId) -> None:
        """Keep it until cancelled, or until somebody else has it."""
        while True:
            await self._clock.sleep(EXTEND_EVERY)
            try:
                self._delivery = await self._queue.extend(SELF, self._delivery, HINT_LEASE)
            except Conflict:
                return
            except AgentOSError as error:
                logger.warning("worker.hint_failed", extra={"run_id": run_id, "code": error.code})

    async def conclude(self, run_id: RunId, *, again_after: timedelta) -> None:
        """Acknowledge it or give it back, as the run stands; a queued run's comes back `again_after`. Raises nothing.

        Where that fails it comes back when its lease ends, and so to the same question.
        """
        with contextlib.suppress(Conflict):
            try:
                match await self._status(run_id):
                    case "queued":
                        await self._give_back(again_after)
                    case "running":
                        # Leased still, as somebody works on it; it comes back by itself to the same question.
                        self._delivery = await self._queue.extend(SELF, self._delivery, HELD_ELSEWHERE)
                    case _:
                        await self._queue.ack(SELF, self._delivery)
            except Conflict:
                raise
            except AgentOSError as error:
                logger.warning("worker.hint_failed", extra={"run_id": run_id, "code": error.code})

    async def _status(self, run_id: RunId) -> RunStatus | None:
        try:
            return (await self._run_state.load(self._delivery.requester, run_id)).status
        except NotFound:
            return None

    async def _give_back(self, after: timedelta) -> None:
        if not after:
            await self._queue.release(SELF, self._delivery)
        elif self._queue.capabilities.delayed_delivery:
            await self._queue.release(SELF, self._delivery, delay=after)
