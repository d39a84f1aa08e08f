"""Run states that are wrong about effects: those they write, and those that a cancelled run may have begun."""

from datetime import datetime
from typing import ClassVar

from msgspec.structs import replace

from adapters.inproc import memory, run_state
from adapters.inproc.run_state import InprocRunState
from adapters.inproc.runs import RunRow
from ports.context import AuthContext
from ports.ids import RunId
from ports.run_state import (
    Appended,
    Change,
    Idempotency,
    NewEvent,
    Run,
    RunStateCapabilities,
)
from tests.contract.broken.run_states import BrokenRunState


class LosesWrites(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        for write in change.writes:
            memory.check(write)
        return await super().append(auth, run_id, epoch, replace(change, writes=()))


class TestLosesWrites(BrokenRunState):
    broken = LosesWrites
    caught_by = frozenset({"test_the_writes_of_an_append_are_true_with_it", "test_writes_are_put_one_after_the_other"})


class WritesBeforeItRefuses(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        for write in change.writes:
            memory.check(write)
            self._items.put(auth, write, self._clock.now())
        return await super().append(auth, run_id, epoch, replace(change, writes=()))


class TestWritesBeforeItRefuses(BrokenRunState):
    broken = WritesBeforeItRefuses
    caught_by = frozenset(
        {
            "test_the_writes_of_a_refused_append_are_not_made",
            "test_a_worker_that_was_taken_over_makes_no_writes",
            "test_a_write_that_memory_would_not_take_refuses_the_whole_append",
        }
    )


class WritesAfterItHasAnswered(InprocRunState):
    """As a crash between the two would show."""

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        appended = await super().append(auth, run_id, epoch, replace(change, writes=()))
        for write in change.writes:
            memory.check(write)
            self._items.put(auth, write, self._clock.now())
        return appended


class TestWritesAfterItHasAnswered(BrokenRunState):
    broken = WritesAfterItHasAnswered
    caught_by = frozenset({"test_a_write_that_memory_would_not_take_refuses_the_whole_append"})


class WritesForEverybodyOfATenant(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        appended = await super().append(auth, run_id, epoch, change)
        for write in change.writes:
            self._items.put(replace(auth, namespace="lab"), write, self._clock.now())
        return appended


class TestWritesForEverybodyOfATenant(BrokenRunState):
    broken = WritesForEverybodyOfATenant
    caught_by = frozenset({"test_writes_are_those_of_the_runs_tenant_and_namespace"})


class LetsTheFirstWriteStand(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        return await super().append(auth, run_id, epoch, replace(change, writes=change.writes[::-1]))


class TestLetsTheFirstWriteStand(BrokenRunState):
    broken = LetsTheFirstWriteStand
    caught_by = frozenset({"test_writes_are_put_one_after_the_other"})


class SilentlyMakesNoWrites(InprocRunState):
    @property
    def capabilities(self) -> RunStateCapabilities:
        return RunStateCapabilities()

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        return await super().append(auth, run_id, epoch, replace(change, writes=()))


class TestSilentlyMakesNoWrites(BrokenRunState):
    broken = SilentlyMakesNoWrites
    caught_by = frozenset({"test_a_store_that_makes_no_writes_says_so"})


class TestLeavesStepsBegun(BrokenRunState):
    replaced: ClassVar = {"close_begun": lambda _row, _now: []}
    caught_by = frozenset({"test_a_run_cancelled_while_nobody_holds_it_leaves_no_step_begun"})


honest_close_begun = run_state.close_begun


def close_in_silence(row: RunRow, now: datetime) -> list[NewEvent]:
    honest_close_begun(row, now)
    return []


class TestClosesStepsInSilence(BrokenRunState):
    replaced: ClassVar = {"close_begun": close_in_silence}
    caught_by = frozenset({"test_a_run_cancelled_while_nobody_holds_it_leaves_no_step_begun"})


def close_every_step(row: RunRow, now: datetime) -> list[NewEvent]:
    row.steps = {n: replace(step, status="started") for n, step in row.steps.items()}
    return honest_close_begun(row, now)


class TestClosesEveryStep(BrokenRunState):
    replaced: ClassVar = {"close_begun": close_every_step}
    caught_by = frozenset(
        {
            "test_a_run_cancelled_while_nobody_holds_it_leaves_no_step_begun",
            "test_a_decided_step_of_a_cancelled_run_keeps_its_decision",
        }
    )


class ClosesStepsOfHeldRuns(InprocRunState):
    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        row = self._runs.row(auth, run_id)
        if row.run.status == "running":
            run_state.close_begun(row, self._clock.now())
        return await super().cancel(auth, run_id, reason=reason, idempotency=idempotency)


class TestClosesStepsOfHeldRuns(BrokenRunState):
    broken = ClosesStepsOfHeldRuns
    caught_by = frozenset({"test_cancelling_a_held_run_leaves_its_steps_to_its_worker"})
