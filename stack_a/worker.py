"""The worker: lease hints, claim runs, execute them, and adopt runs that nobody works on.

RunState decides; the queue only hints. A hint is acknowledged once the claim is committed, so a crash between the two costs
a redelivery, and a crash after it costs a lapsed lease, which the sweep of any worker finds. Where that is asked for, it is
acknowledged when the run needs no worker any more (`stack_a.hints`).

The worker's right to write is its lease (`stack_a.lease`). When that is given up, all runs are left as they are.
"""

import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, Internal, NotFound, ResourceExhausted, Unavailable
from ports.ids import RunId, WorkerId
from ports.messages import Fault
from ports.queue import Delivery
from ports.run_state import Run
from stack_a.cancellation import answered
from stack_a.deps import WorkerDeps
from stack_a.hints import HINT_LEASE, Ack, KeptHint
from stack_a.lease import SELF, Keep, Lease
from stack_a.runs.execute import Execution
from stack_a.runs.family import Family
from stack_a.runs.pinned import PinnedAgents
from stack_a.runs.start import Hint
from stack_a.slots import Slots, reserve_of

logger = logging.getLogger("agentos.worker")

SWEEP_EVERY: Final = timedelta(seconds=2)
SWEEP_AGAIN: Final = timedelta(milliseconds=250)
"""After a sweep that found as much as there was room for."""
MENDED_AT_ONCE: Final = 50
SWEEP_JITTER: Final = (0.75, 1.25)
"""So that workers started together do not sweep together."""
QUEUED_TOO_LONG: Final = timedelta(seconds=2)
HOWEVER_LONG: Final = timedelta(days=36_500)
LEASE_WAIT: Final = timedelta(seconds=1)
RETRY_AFTER: Final = timedelta(seconds=1)
STILL_UNDER_WAY: Final = timedelta(seconds=10)
"""How long a claim that was not answered may yet be made: twice what the PostgreSQL adapter gives a call, rounded up."""
ROOM_AFTER: Final = timedelta(milliseconds=250)
"""How long a hint is put aside whose tenant has as many runs running as it may. Queues that know don't even deliver it."""


class Worker:
    """Runs up to `concurrency` runs at once in this process. `serve` once per instance."""

    def __init__(
        self,
        deps: WorkerDeps,
        *,
        new_id: Callable[[], WorkerId],
        concurrency: int,
        keep: Keep | None = None,
        ack: Ack = "accept",
    ) -> None:
        """`keep` is how the lease is kept; if it is not said, then here, where a busy event loop delays it. `ack` says when
        hints are acknowledged.
        """
        self._deps = deps
        self._ack = ack
        self._lease = Lease(deps.clock, new_id=new_id)
        self._keep: Keep = keep or (lambda lease: lease.keep(deps.run_state))
        self._agents = PinnedAgents(deps.agent)
        self._family = Family(run_state=deps.run_state, queue=deps.queue)
        kept = reserve_of(concurrency)
        self._slots = Slots(concurrency - kept)
        self._reserve = Slots(kept)
        self._executions: dict[RunId, Execution] = {}
        self._claimed: dict[RunId, int] = {}
        """The epoch of each run in hand, from the claim on."""
        self._registered = anyio.Event()
        self._sweep_due = False
        """Whether the next free slot is the sweep's."""
        self._leaving = anyio.Event()
        self._handing_back = False
        """Whether the grace after `drain` is over."""
        self._changed = anyio.Event()

    @property
    def id(self) -> WorkerId:
        """Another one after the lease was given up."""
        return self._lease.id

    @property
    def active(self) -> int:
        """Runs in hand."""
        return len(self._executions)

    @property
    def holds_lease(self) -> bool:
        """Whether it may write: what its readiness says."""
        return self._lease.live

    async def serve(self) -> None:
        """Work until `drain` has been called and is done, or the task is cancelled.

        Raises `Internal` when it ends without either: then the process has to begin anew.
        """
        self._lease.attend(self._hear)
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep, self._lease)
            await self._registered.wait()
            async with anyio.create_task_group() as taking:
                taking.start_soon(self._take_forever, group)
                taking.start_soon(self._take_for_idle_forever, group)
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
        self._handing_back = True
        for execution in self._executions.values():
            execution.interrupt("hand_back")
        await self._until_idle()

    async def _until_idle(self) -> None:
        """Until nothing is being claimed or executed any more."""
        while self._slots.in_hand or self._reserve.in_hand:
            await self._changed.wait()

    def _announce(self) -> None:
        """Wake those who wait for a free slot, for the lease or for the last run to end."""
        self._changed.set()
        self._changed = anyio.Event()

    def _hear(self, cancel_requested: frozenset[RunId]) -> None:
        """The lease was renewed or given up."""
        if self.holds_lease:
            self._registered.set()
        for run_id, execution in self._executions.items():
            if not self._holds(execution.run):
                execution.interrupt("abandon")
            elif run_id in cancel_requested:
                execution.interrupt("cancel")
        # Nobody takes work without a lease.
        self._announce()

    def _holds(self, run: Run) -> bool:
        """Whether it was claimed under the lease that we have now and may act under, whatever of that we have heard."""
        return run.worker is not None and self._lease.holds(run.worker)

    # --- taking work -------------------------------------------------------------------------------------------------

    @property
    def _free(self) -> int:
        """How much more to take. What waits here for a slot would keep others' turns waiting, and other workers idle."""
        return self._slots.free if self.holds_lease else 0

    @property
    def _free_for_idle(self) -> int:
        """How much more to take for tenants that have nothing under way.

        While most of the other slots are free they need no more. Not only when none is: the look that is about to fill
        them takes its time, and would keep the first run of such a tenant waiting.
        """
        return self._reserve.free if self.holds_lease and self._slots.crowded else 0

    def _take_in_hand(self, group: TaskGroup, slots: Slots, work: Callable[[], Awaitable[None]]) -> None:
        slots.in_hand += 1
        if slots.crowded:
            # Now it is time to look for those whom a slot is kept for.
            self._announce()

        async def in_a_slot() -> None:
            try:
                async with slots.places:
                    await work()
            finally:
                slots.in_hand -= 1
                self._announce()

        group.start_soon(in_a_slot)

    async def _take_forever(self, group: TaskGroup) -> None:
        def free() -> int:
            return self._free - self._sweep_due

        await self._take_hints(group, self._slots, free, idle_only=False)

    async def _take_for_idle_forever(self, group: TaskGroup) -> None:
        await self._take_hints(group, self._reserve, lambda: self._free_for_idle, idle_only=True)

    async def _take_hints(self, group: TaskGroup, slots: Slots, free: Callable[[], int], *, idle_only: bool) -> None:
        while True:
            limit = free()
            if limit <= 0:
                with anyio.move_on_after(LEASE_WAIT.total_seconds()):
                    await self._changed.wait()
                continue
            try:
                deliveries = await self._deps.queue.lease(
                    SELF, limit=limit, duration=HINT_LEASE, wait=LEASE_WAIT, idle_only=idle_only
                )
            except AgentOSError as error:
                logger.warning("worker.lease_failed", extra={"worker_id": self.id, "code": error.code})
                await self._deps.clock.sleep(RETRY_AFTER)
                continue
            for delivery in deliveries:
                self._take_in_hand(group, slots, partial(self._follow_hint, delivery, group))

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
        if self._ack == "complete":
            await self._follow_to_the_end(delivery, hint.run_id, run)
            return
        # After the claim's commit: from here on the run itself says that it needs a worker. It doesn't wait for that.
        group.start_soon(self._acknowledge, delivery, hint.run_id)
        if run is not None:
            await self._execute(run)

    async def _follow_to_the_end(self, delivery: Delivery, run_id: RunId, run: Run | None) -> None:
        kept = KeptHint(self._deps.queue, self._deps.run_state, self._deps.clock, delivery)
        if run is not None:
            async with anyio.create_task_group() as group:
                group.start_soon(kept.extend, run_id)
                await self._execute(run, hinted=True)
                group.cancel_scope.cancel()
        # Whoever takes up at once what could not be claimed would do nothing else.
        await kept.conclude(run_id, again_after=ROOM_AFTER if run is None else timedelta(0))

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
            # With more hints than slots, what is only queued waits for its turn in the queue.
            queued_for = QUEUED_TOO_LONG if self._free > 0 else HOWEVER_LONG
            free = await self._until_free()
            try:
                orphans = await self._deps.run_state.orphans(SELF, queued_for=queued_for, limit=free)
            except AgentOSError as error:
                logger.warning("worker.sweep_failed", extra={"worker_id": self.id, "code": error.code})
                orphans = ()
            for orphan in orphans:
                self._take_in_hand(group, self._slots, partial(self._adopt, orphan.requester, orphan.run_id))
            # Not before: whose worker is gone waits longest already.
            mended = await self._mend()
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
        clock, worker, unanswered_at = self._deps.clock, self.id, None
        while True:
            try:
                run = await self._claim_once(requester, run_id, worker, unanswered=unanswered_at is not None)
            except NotFound:
                return None
            except ResourceExhausted:
                if unanswered_at is None or clock.monotonic() - unanswered_at > STILL_UNDER_WAY.total_seconds():
                    raise
                # The claim before this one may still find room.
                await clock.sleep(RETRY_AFTER)
                continue
            except Unavailable as error:
                if worker != self.id or self._handing_back:
                    raise  # that lease ends, and with it what was claimed under it
                logger.warning("worker.claim_unanswered", extra={"run_id": run_id, "code": error.code})
                unanswered_at = clock.monotonic()
                await clock.sleep(RETRY_AFTER)
                continue
            if run is None or worker != self.id:
                return None  # fenced while the answer was on its way: the same
            if self._claimed.get(run_id) == run.epoch:
                return None  # another of our claims was not answered, and found what this one had made
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

    async def _execute(self, run: Run, *, hinted: bool = False) -> None:
        """`hinted`: the hint is there still, for whoever takes the run next."""
        execution = Execution(self._deps, self._agents, run, now=self._lease.now, held=partial(self._holds, run))
        self._executions[run.id] = execution
        if self._handing_back:
            execution.interrupt("hand_back")
        waited = self._lease.now() - run.created_at if run.epoch == 1 else None
        self._deps.metrics.run_claimed(waited=waited, recovered=run.recoveries > 0)
        try:
            with self._deps.metrics.run_active():
                await self._proceed(execution, hinted=hinted)
        finally:
            # A run that was handed back may have come back to us before we are done with leaving it.
            if self._claimed.get(run.id) == run.epoch:
                del self._executions[run.id]
                del self._claimed[run.id]
            self._announce()

    async def _proceed(self, execution: Execution, *, hinted: bool) -> None:
        run = execution.run
        try:
            if await answered(execution.proceed()):
                await self._hand_back(run, troubled=False, hinted=hinted)
        except Exception as error:
            if troubled := not (isinstance(error, AgentOSError) and error.retryable):
                # A defect, or something the store won't take: the run would meet it again on every worker.
                logger.exception("run.crashed", extra={"run_id": run.id})
                with contextlib.suppress(AgentOSError):
                    await execution.fail(Fault(code="internal", message="the run met an internal error"))
                    return
            else:
                # Whatever did not answer, it is not this run's fault.
                logger.warning("run.interrupted", extra={"run_id": run.id, "code": error.code})
            # It may be claimed again at once, and meet the same.
            await self._deps.clock.sleep(RETRY_AFTER)
            await self._hand_back(run, troubled=troubled, hinted=hinted)

    async def _hand_back(self, run: Run, *, troubled: bool, hinted: bool) -> None:
        """Release the run, however long the store takes to come back: while our lease lives nobody else may claim it."""
        while self._holds(run):
            try:
                await self._deps.run_state.release(run.requester, run.id, run.epoch, troubled=troubled)
                if not hinted:
                    hint = msgspec.json.encode(Hint(run.id))
                    await self._deps.queue.enqueue(run.requester, hint, priority=run.priority)
            except (Conflict, NotFound):
                return
            except AgentOSError:
                await self._deps.clock.sleep(RETRY_AFTER)
            else:
                return
