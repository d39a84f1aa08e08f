"""The worker: lease hints, claim runs, execute them, and adopt runs that nobody works on.

RunState decides; the queue only hints. A hint is acknowledged once the claim is committed, so a crash between the two costs
a redelivery, and a crash after it costs a lapsed lease, which the sweep of any worker finds.

The worker's right to write is its lease in the run store, renewed every `RENEW_EVERY` for `LEASE`. When it could not renew
for `FENCE_AFTER` by its own monotonic clock, it stops all its runs without another write: the lease may soon lapse. The
store gives renewals a way of their own, past whatever else waits for it. A loop kept so busy that it does not come to renew
does not come to stop its runs either; what it then still writes, the store refuses, because whoever took over has a higher
epoch.
"""

import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from ports.context import QUEUE_ANY_TENANT, RUNS_ANY_TENANT, AuthContext
from ports.errors import AgentOSError, Conflict, Internal, NotFound, ResourceExhausted, Unavailable
from ports.ids import PrincipalId, RunId, TenantId, WorkerId
from ports.messages import Fault
from ports.queue import Delivery
from ports.run_state import Run
from stack_a.cancellation import answered
from stack_a.deps import WorkerDeps
from stack_a.runs.execute import Execution, Interruption
from stack_a.runs.family import Family
from stack_a.runs.pinned import PinnedAgents
from stack_a.runs.start import Hint

logger = logging.getLogger("agentos.worker")

LEASE: Final = timedelta(seconds=25)
"""How long a run of a worker that died waits, at most, before it may be taken over. With the longest pause between two
sweeps (1.25 * `SWEEP_EVERY`) that is 27.5 s, which leaves 2.5 s of the 30 s promised for the sweep and the claim."""
RENEW_EVERY: Final = timedelta(seconds=2)
"""Also how soon a cancel reaches a running tool."""
FENCE_AFTER: Final = timedelta(seconds=18)
"""Looked at when a renewal fails, which may be a pause and a whole call after it passed: 18 + 2 + 4.5 s, where 4.5 s is the
longest that the PostgreSQL adapter waits for an answer. So all runs are stopped before the lease ends, at 25 s."""
SWEEP_EVERY: Final = timedelta(seconds=2)
SWEEP_AGAIN: Final = timedelta(milliseconds=250)
"""After a sweep that found as much as there was room for."""
MENDED_AT_ONCE: Final = 50
SWEEP_JITTER: Final = (0.75, 1.25)
"""So that workers started together do not sweep together."""
QUEUED_TOO_LONG: Final = timedelta(seconds=2)
HOWEVER_LONG: Final = timedelta(days=36_500)
HINT_LEASE: Final = timedelta(seconds=10)
LEASE_WAIT: Final = timedelta(seconds=1)
RETRY_AFTER: Final = timedelta(seconds=1)
ROOM_AFTER: Final = timedelta(milliseconds=250)
"""How long a hint is put aside whose tenant has as many runs running as it may. Queues that know don't even deliver it."""

SELF: Final = AuthContext(
    tenant=TenantId("tnt_system"),
    principal=PrincipalId("svc_worker"),
    scopes=frozenset({QUEUE_ANY_TENANT, RUNS_ANY_TENANT}),
)
"""The worker's own identity. What it does for a run it does as the run's requester."""


class Worker:
    """Runs up to `concurrency` runs at once in this process. `serve` once per instance."""

    def __init__(self, deps: WorkerDeps, *, new_id: Callable[[], WorkerId], concurrency: int) -> None:
        self.id = new_id()
        self._new_id = new_id
        self._deps = deps
        self._agents = PinnedAgents(deps.agent)
        self._family = Family(run_state=deps.run_state, queue=deps.queue)
        self._concurrency = concurrency
        self._slots = anyio.Semaphore(concurrency)
        self._in_hand = 0
        """Hints and orphans being claimed or executed."""
        self._executions: dict[RunId, Execution] = {}
        self._claimed: dict[RunId, int] = {}
        """The epoch of each run in hand, from the claim on."""
        self._renewed_at: float | None = None
        self._behind = timedelta(0)
        """How far this machine's clock is behind the store's."""
        self._registered = anyio.Event()
        self._sweep_due = False
        """Whether the next free slot is the sweep's."""
        self._leaving = anyio.Event()
        self._changed = anyio.Event()

    @property
    def active(self) -> int:
        """Runs in hand."""
        return len(self._executions)

    @property
    def holds_lease(self) -> bool:
        """Whether it may write: what its readiness says."""
        if self._renewed_at is None:
            return False
        return self._deps.clock.monotonic() - self._renewed_at < FENCE_AFTER.total_seconds()

    async def serve(self) -> None:
        """Work until `drain` has been called and is done, or the task is cancelled.

        Raises `Internal` when it ends without either: then the process has to begin anew.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._renew_forever)
            await self._registered.wait()
            async with anyio.create_task_group() as taking:
                taking.start_soon(self._take_forever, group)
                taking.start_soon(self._sweep_forever, group)
                await self._leaving.wait()
                taking.cancel_scope.cancel()
            await self._until_idle()
            group.cancel_scope.cancel()
        with contextlib.suppress(AgentOSError):
            await self._deps.run_state.retire(SELF, self.id)
        if not self._leaving.is_set():
            raise Internal("the worker's tasks were cancelled, and nobody had asked it to leave")

    async def drain(self, grace: timedelta) -> None:
        """Take nothing new; let runs finish within `grace`; then hand the rest back to other workers."""
        self._leaving.set()
        with anyio.move_on_after(grace.total_seconds()):
            await self._until_idle()
        self._interrupt_all("hand_back")
        await self._until_idle()

    async def _until_idle(self) -> None:
        while self._executions:
            await self._changed.wait()

    def _interrupt_all(self, why: Interruption) -> None:
        for execution in self._executions.values():
            execution.interrupt(why)

    def _announce(self) -> None:
        """Wake those who wait for a free slot or for the last run to end."""
        self._changed.set()
        self._changed = anyio.Event()

    # --- the lease ---------------------------------------------------------------------------------------------------

    async def _renew_forever(self) -> None:
        clock = self._deps.clock
        while True:
            began = clock.monotonic()
            try:
                renewal = await self._deps.run_state.renew(SELF, self.id, LEASE)
            except AgentOSError as error:
                logger.warning("worker.renew_failed", extra={"worker_id": self.id, "code": error.code})
                if self._renewed_at is not None and not self.holds_lease:
                    self._fence()
            else:
                # Counted from before the call: the store's lease ends no earlier.
                self._renewed_at = began
                self._behind = renewal.now - clock.now()
                self._registered.set()
                for run_id in renewal.cancel_requested:
                    if execution := self._executions.get(run_id):
                        execution.interrupt("cancel")
            await clock.sleep(RENEW_EVERY)

    def _now(self) -> datetime:
        """By the store's clock, as far as a call's time: what runs are dated by."""
        return self._deps.clock.now() + self._behind

    def _fence(self) -> None:
        """The lease may have lapsed: give up every run unwritten, and come back as another worker.

        Under the old id those runs would look held for as long as it is renewed.
        """
        logger.error("worker.fenced_itself", extra={"worker_id": self.id, "active": self.active})
        self._interrupt_all("abandon")
        self.id = self._new_id()
        self._renewed_at = None

    # --- taking work -------------------------------------------------------------------------------------------------

    @property
    def _free(self) -> int:
        """How much more to take. What waits here for a slot would keep others' turns waiting, and other workers idle."""
        return max(0, self._concurrency - self._in_hand) if self.holds_lease else 0

    def _take_in_hand(self, group: TaskGroup, work: Callable[[], Awaitable[None]]) -> None:
        self._in_hand += 1

        async def in_a_slot() -> None:
            try:
                async with self._slots:
                    await work()
            finally:
                self._in_hand -= 1
                self._announce()

        group.start_soon(in_a_slot)

    async def _take_forever(self, group: TaskGroup) -> None:
        while True:
            free = self._free - self._sweep_due
            if free <= 0:
                with anyio.move_on_after(LEASE_WAIT.total_seconds()):
                    await self._changed.wait()
                continue
            try:
                deliveries = await self._deps.queue.lease(SELF, limit=free, duration=HINT_LEASE, wait=LEASE_WAIT)
            except AgentOSError as error:
                logger.warning("worker.lease_failed", extra={"worker_id": self.id, "code": error.code})
                await self._deps.clock.sleep(RETRY_AFTER)
                continue
            for delivery in deliveries:
                self._take_in_hand(group, partial(self._follow_hint, delivery, group))

    async def _follow_hint(self, delivery: Delivery, group: TaskGroup) -> None:
        hint = msgspec.json.decode(delivery.body, type=Hint)
        try:
            run = await self._claim(delivery.requester, hint.run_id)
        except ResourceExhausted:
            await self._put_aside(delivery)
            return
        except AgentOSError as error:
            # The hint comes back when its lease ends, and the sweep finds the run in any case.
            logger.warning("worker.hint_failed", extra={"run_id": hint.run_id, "code": error.code})
            return
        # After the claim's commit: from here on the run itself says that it needs a worker. It doesn't wait for that.
        group.start_soon(self._acknowledge, delivery, hint.run_id)
        if run is not None:
            await self._execute(run)

    async def _acknowledge(self, delivery: Delivery, run_id: RunId) -> None:
        try:
            await self._deps.queue.ack(SELF, delivery)
        except AgentOSError as error:
            # Then it comes back, and finds the run held or ended.
            logger.warning("worker.hint_failed", extra={"run_id": run_id, "code": error.code})

    async def _put_aside(self, delivery: Delivery) -> None:
        """Where the queue can't delay, or does not answer, the hint comes back when its lease ends."""
        if self._deps.queue.capabilities.delayed_delivery:
            with contextlib.suppress(AgentOSError):
                await self._deps.queue.release(SELF, delivery, delay=ROOM_AFTER)

    async def _sweep_forever(self, group: TaskGroup) -> None:
        """Adopt runs whose hint was lost or whose worker is gone.

        Straight from the store, not by way of the queue: a hint enqueued again on every sweep would multiply under a
        backlog. A worker without a free slot has no use for either; but the next one to become free is kept for the sweep,
        because where hints have no end none would ever be free at the moment it looks.
        """
        pause = SWEEP_EVERY
        while True:
            await self._deps.clock.sleep(pause * random.uniform(*SWEEP_JITTER))  # noqa: S311 - not a secret
            mended = await self._mend()
            # With more hints than slots, what is only queued waits for its turn in the queue.
            queued_for = QUEUED_TOO_LONG if self._free > 0 else HOWEVER_LONG
            free = await self._until_free()
            try:
                orphans = await self._deps.run_state.orphans(SELF, queued_for=queued_for, limit=free)
            except AgentOSError as error:
                logger.warning("worker.sweep_failed", extra={"worker_id": self.id, "code": error.code})
                orphans = ()
            for orphan in orphans:
                self._take_in_hand(group, partial(self._adopt, orphan.requester, orphan.run_id))
            # As many as there was room for: there may be more, and they come before new ones.
            pause = SWEEP_AGAIN if len(orphans) == free or mended == MENDED_AT_ONCE else SWEEP_EVERY
            self._sweep_due = False
            self._announce()

    async def _mend(self) -> int:
        """See to runs whose parent or children went on without them: that needs no slot."""
        try:
            return await self._family.mend(SELF, limit=MENDED_AT_ONCE)
        except AgentOSError as error:
            logger.warning("worker.sweep_failed", extra={"worker_id": self.id, "code": error.code})
            return 0

    async def _until_free(self) -> int:
        """How many slots are free, at least one. It is the sweep's as soon as it is free."""
        self._sweep_due = True
        while (free := self._free) == 0:
            with anyio.move_on_after(LEASE_WAIT.total_seconds()):
                await self._changed.wait()
        return free

    async def _adopt(self, requester: AuthContext, run_id: RunId) -> None:
        try:
            run = await self._claim(requester, run_id)
        except ResourceExhausted:
            # Others of its tenant were faster; the next sweep sees.
            return
        except AgentOSError as error:
            logger.warning("worker.adopt_failed", extra={"run_id": run_id, "code": error.code})
            return
        if run is not None:
            logger.info("run.adopted", extra={"run_id": run_id, "epoch": run.epoch})
            await self._execute(run)

    async def _claim(self, requester: AuthContext, run_id: RunId) -> Run | None:
        """None when there is nothing to do: somebody else has it, or it has ended.

        A claim that is not answered may have been made, and would then hold the run for as long as this worker lives.

        Raises `ResourceExhausted` when there is something to do later: its tenant has as many runs running as it may.
        """
        worker, unanswered = self.id, False
        while True:
            try:
                run = await self._claim_once(requester, run_id, worker, unanswered=unanswered)
            except NotFound:
                return None
            except Unavailable as error:
                if worker != self.id:
                    raise  # fenced meanwhile: the old lease ends, and with it what was claimed under it
                logger.warning("worker.claim_unanswered", extra={"run_id": run_id, "code": error.code})
                unanswered = True
                await self._deps.clock.sleep(RETRY_AFTER)
                continue
            if run is not None and worker != self.id:
                return None  # fenced while the answer was on its way: the same
            if run is not None:
                self._claimed[run_id] = run.epoch
            return run

    async def _claim_once(
        self, requester: AuthContext, run_id: RunId, worker: WorkerId, *, unanswered: bool
    ) -> Run | None:
        try:
            return await self._deps.run_state.claim(requester, run_id, worker)
        except Conflict:
            if not unanswered:
                return None
        run = await self._deps.run_state.load(requester, run_id)
        # Ours, unless it is another claim of this process that was answered.
        return run if run.worker == worker and run.epoch != self._claimed.get(run_id) else None

    # --- one run -----------------------------------------------------------------------------------------------------

    async def _execute(self, run: Run) -> None:
        execution = Execution(self._deps, self._agents, run, now=self._now)
        self._executions[run.id] = execution
        waited = self._now() - run.created_at if run.epoch == 1 else None
        self._deps.metrics.run_claimed(waited=waited, recovered=run.recoveries > 0)
        try:
            with self._deps.metrics.run_active():
                await self._proceed(execution)
        finally:
            # A run that was handed back may have come back to us before we are done with leaving it.
            if self._claimed.get(run.id) == run.epoch:
                del self._executions[run.id]
                del self._claimed[run.id]
            self._announce()

    async def _proceed(self, execution: Execution) -> None:
        run = execution.run
        try:
            if await answered(execution.proceed()):
                await self._hand_back(run, troubled=False)
        except Exception as error:
            if isinstance(error, AgentOSError) and error.retryable:
                logger.warning("run.interrupted", extra={"run_id": run.id, "code": error.code})
            else:
                # A defect, or something the store won't take: the run would meet it again on every worker.
                logger.exception("run.crashed", extra={"run_id": run.id})
                with contextlib.suppress(AgentOSError):
                    await execution.fail(Fault(code="internal", message="the run met an internal error"))
                    return
            await self._hand_back(run, troubled=True)

    async def _hand_back(self, run: Run, *, troubled: bool) -> None:
        """Release the run, however long the store takes to come back: while our lease lives nobody else may claim it."""
        while True:
            try:
                await self._deps.run_state.release(run.requester, run.id, run.epoch, troubled=troubled)
                await self._deps.queue.enqueue(run.requester, msgspec.json.encode(Hint(run.id)))
            except (Conflict, NotFound):
                return
            except AgentOSError:
                await self._deps.clock.sleep(RETRY_AFTER)
            else:
                return
