"""Run states whose writes are broken."""

from msgspec.structs import replace

from adapters.inproc import memory
from adapters.inproc.run_state import InprocRunState
from ports.context import AuthContext
from ports.ids import RunId
from ports.run_state import Appended, Change, RunStateCapabilities
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
