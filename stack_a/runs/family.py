"""What the end of a run means for the run that it worked for, and for those that work for it.

A parent waits without a worker and without a place. Whoever ends a run tells its parent and its children right after, each
in a transaction of its own: what a crash in between leaves undone is found by any worker's sweep.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.ids import RunId
from ports.queue import QueuePort
from ports.run_state import MAX_PAGE, TERMINAL, Run, RunFilter, RunStatePort
from stack_a.runs.start import hint

logger = logging.getLogger("agentos.runs")

REASON: Final = "the run that it was made for has ended"
MOST_AT_ONCE: Final = 200
"""Runs that one call asks to end, about. The sweep asks the rest."""


class Family:
    """The ties between runs, over the run store and the queue."""

    def __init__(self, *, run_state: RunStatePort, queue: QueuePort) -> None:
        self._run_state = run_state
        self._queue = queue

    async def waits(self, run: Run) -> None:
        """`run` was just made to wait; its children may have ended before that. Raises nothing."""
        with _left_to_the_sweep(run.id):
            await self._wake(run.requester, run.id, run.priority)

    async def ended(self, auth: AuthContext, run: Run, *, childless: bool = False) -> None:
        """`run` has ended, by `auth`: its parent may go on, and nobody wants its children any more. Raises nothing."""
        if run.parent is not None:
            with _left_to_the_sweep(run.id):
                # Its children have the parent's priority.
                await self._wake(auth, run.parent.run_id, run.priority)
        if not childless:
            with _left_to_the_sweep(run.id):
                await self._end_below(auth, run.id)

    async def mend(self, auth: AuthContext, *, limit: int) -> int:
        """Tell what should have been told and was not: how much that was. Raises what finding it raises."""
        adrift = await self._run_state.adrift(auth, limit=limit)
        for one in adrift:
            logger.info("run.mended", extra={"run_id": one.run_id, "kind": one.due})
            # One that can't be helped now keeps nobody else waiting.
            with _left_to_the_sweep(one.run_id):
                if one.due == "wake":
                    run = await self._run_state.load(one.requester, one.run_id)
                    await self._wake(one.requester, one.run_id, run.priority)
                elif await self._end(one.requester, one.run_id):
                    await self._end_below(one.requester, one.run_id)
        return len(adrift)

    async def _wake(self, auth: AuthContext, run_id: RunId, priority: int) -> None:
        if await self._run_state.wake(auth, run_id):
            await hint(self._queue, auth, run_id, priority)

    async def _end_below(self, auth: AuthContext, run_id: RunId) -> None:
        """Ask the open runs below a run that has ended to end. Below one that a worker holds, that worker does."""
        above, asked = deque([run_id]), 0
        while above and asked < MOST_AT_ONCE:
            for child in await self._open_children(auth, above.popleft()):
                asked += 1
                if await self._end(auth, child):
                    above.append(child)

    async def _end(self, auth: AuthContext, run_id: RunId) -> bool:
        """Whether it has ended with that."""
        return (await self._run_state.cancel(auth, run_id, reason=REASON)).status in TERMINAL

    async def _open_children(self, auth: AuthContext, run_id: RunId) -> list[RunId]:
        # A run has few children at a time, and those that are open are the newest.
        page = await self._run_state.list_runs(auth, RunFilter(parent=run_id), limit=MAX_PAGE)
        return [child.id for child in page.items if child.status not in TERMINAL]


@contextmanager
def _left_to_the_sweep(run_id: RunId) -> Iterator[None]:
    try:
        yield
    except AgentOSError as error:
        logger.warning("run.family_untold", extra={"run_id": run_id, "code": error.code})
