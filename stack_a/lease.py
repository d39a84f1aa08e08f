"""The worker's right to write: its lease in the run store, renewed every `RENEW_EVERY` for `LEASE`.

When it could not be renewed for `FENCE_AFTER` by the worker's own monotonic clock, the worker gives it up and stops all its
runs without another write or effect: the lease may soon lapse, and whoever takes the runs over has a higher epoch. A
process that was stopped for so long finds that out by itself when it goes on (`holds`), before anybody else tells it.

A node keeps its lease on a thread of its own, with an event loop and a connection of its own (`kept_apart`): a tool or a
parser may keep the worker's loop busy for longer than a lease lasts. What is found there is told to that loop; and because
a loop that was busy may write before it listens, it looks at `id` before it writes. A loop that does not come back at all
is given up as well, or nobody would ever take its runs over.
"""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

from ports.clock import Clock
from ports.context import QUEUE_ANY_TENANT, RUNS_ANY_TENANT, AuthContext
from ports.errors import AgentOSError
from ports.ids import PrincipalId, RunId, TenantId, WorkerId
from ports.run_state import Renewal

logger = logging.getLogger("agentos.worker")

LEASE: Final = timedelta(seconds=25)
"""How long a run of a worker that died waits, at most, before it may be taken over. With the longest pause between two
sweeps (1.25 * `SWEEP_EVERY`) that is 27.5 s, which leaves 2.5 s of the 30 s promised for the sweep and the claim."""
RENEW_EVERY: Final = timedelta(seconds=2)
"""Also how soon a cancel reaches a running tool."""
FENCE_AFTER: Final = timedelta(seconds=18)
"""Looked at when a renewal fails, which may be a pause and a whole call after it passed: 18 + 2 + 4.5 s, where 4.5 s is the
longest that the PostgreSQL adapter waits for an answer. So all runs are stopped before the lease ends, at 25 s."""
BUSY_AT_MOST: Final = timedelta(minutes=2)
"""How long the worker's loop may leave what it is told unheard. After that it counts as hung."""
PLACES: Final = 8
"""How many frames of a loop that hangs are told."""

SELF: Final = AuthContext(
    tenant=TenantId("tnt_system"),
    principal=PrincipalId("svc_worker"),
    scopes=frozenset({QUEUE_ANY_TENANT, RUNS_ANY_TENANT}),
)
"""The worker's own identity. What it does for a run it does as the run's requester."""

Hear: TypeAlias = Callable[[frozenset[RunId]], None]
"""Told after each renewal, with the runs whose cancel was asked for, and after the lease was given up."""


class LeaseStore(Protocol):
    """What it takes of the run store."""

    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal: ...


class Lease:
    """One worker's. `keep` runs on any thread; everything else is for the thread of whoever `attend`s."""

    def __init__(self, clock: Clock, *, new_id: Callable[[], WorkerId]) -> None:
        self.id = new_id()
        """Another one after the lease was given up: what was claimed under the old one is not ours any more."""
        self._clock = clock
        self._new_id = new_id
        self._renewed_at: float | None = None
        self._behind = timedelta(0)
        """How far this machine's clock is behind the store's."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._hear: Hear | None = None
        self._unheard_since: float | None = None
        self._found_over: WorkerId | None = None
        """Of which id somebody was told by `holds` that it is over: then it is, whatever a renewal under way brings."""

    @property
    def live(self) -> bool:
        """Whether the worker may write: what its readiness says."""
        renewed_at = self._renewed_at
        return renewed_at is not None and not self._overdue(renewed_at)

    def holds(self, worker: WorkerId) -> bool:
        """Whether what was claimed under this id may still be written to and acted for. Once it may not, it never may.

        Cheap: to be asked before each effect, by any thread.
        """
        renewed_at = self._renewed_at
        if worker != self.id or worker == self._found_over or renewed_at is None:
            return False
        if self._overdue(renewed_at):
            self._found_over = worker
            return False
        return True

    def _overdue(self, renewed_at: float) -> bool:
        return self._clock.monotonic() - renewed_at >= FENCE_AFTER.total_seconds()

    def now(self) -> datetime:
        """By the store's clock, as far as a call's time: what runs are dated by."""
        return self._clock.now() + self._behind

    def attend(self, hear: Hear) -> None:
        """From here on `hear` is called, by the event loop that runs now. Before `keep`."""
        self._loop, self._thread, self._hear = asyncio.get_running_loop(), threading.get_ident(), hear

    async def keep(self, store: LeaseStore) -> NoReturn:
        """Renew until cancelled."""
        while True:
            if self._hung():
                if self._renewed_at is not None:
                    self._give_up("its event loop does not answer", place=self._place())
            else:
                if self._renewed_at is not None and not self.holds(self.id):
                    # Not renewed once more: others may have taken its runs over meanwhile.
                    self._give_up("it was not renewed in time")
                await self._renew(store)
            await self._clock.sleep(RENEW_EVERY)

    async def _renew(self, store: LeaseStore) -> None:
        began = self._clock.monotonic()
        try:
            renewal = await store.renew(SELF, self.id, LEASE)
        except AgentOSError as error:
            logger.warning("worker.renew_failed", extra={"worker_id": self.id, "code": error.code})
            if self._renewed_at is not None and not self.holds(self.id):
                self._give_up("it could not be renewed")
            return
        # Counted from before the call: the store's lease ends no earlier.
        self._renewed_at = began
        self._behind = renewal.now - self._clock.now()
        self._tell(renewal.cancel_requested)

    def _hung(self) -> bool:
        since = self._unheard_since
        return since is not None and self._clock.monotonic() - since > BUSY_AT_MOST.total_seconds()

    def _place(self) -> str:
        """What the loop does not come back from, the innermost function first: names of code, no values."""
        here = sys._current_frames().get(self._thread or 0)  # noqa: SLF001 - documented, in spite of its name
        frames = islice(traceback.walk_stack(here), PLACES) if here is not None else ()
        return " < ".join(
            f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}" for frame, line in frames
        )

    def _give_up(self, why: str, *, place: str | None = None) -> None:
        """Come back as another worker: under the old id its runs would look held for as long as it is renewed."""
        logger.error("worker.fenced_itself", extra={"worker_id": self.id, "reason": why, "place": place})
        # In this order: who finds the new id must not find it live.
        self._renewed_at = None
        self.id = self._new_id()
        self._tell(frozenset())

    def _tell(self, cancel_requested: frozenset[RunId]) -> None:
        assert self._loop is not None, "somebody attends"
        if self._unheard_since is None:
            self._unheard_since = self._clock.monotonic()
        self._loop.call_soon_threadsafe(self._heard, cancel_requested)

    def _heard(self, cancel_requested: frozenset[RunId]) -> None:
        assert self._hear is not None, "it came with the loop"
        self._unheard_since = None
        self._hear(cancel_requested)


Keep: TypeAlias = Callable[[Lease], Coroutine[Any, Any, None]]
"""Keeps a lease until cancelled."""


def kept_apart(open_store: Callable[[], AbstractAsyncContextManager[LeaseStore]]) -> Keep:
    """Keep it on a thread of its own, over a store that is opened there."""

    async def keep(lease: Lease) -> None:
        async def there() -> None:
            async with open_store() as store:
                await lease.keep(store)

        apart = start_blocking_portal(name="lease")
        with anyio.CancelScope(shield=True):
            portal = await anyio.to_thread.run_sync(apart.__enter__)
        try:
            await asyncio.wrap_future(portal.start_task_soon(there))
        finally:
            with anyio.CancelScope(shield=True):
                # Waits for the thread, and with it for the last renewal.
                await anyio.to_thread.run_sync(apart.__exit__, None, None, None)

    return keep
