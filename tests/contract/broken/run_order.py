"""Broken run states: those that lose what is urgent, or what a run waits for."""

from datetime import timedelta

from msgspec.structs import replace

from adapters.inproc.run_state import InprocRunState
from ports.context import AuthContext
from ports.ids import RunId
from ports.priority import DEFAULT, HIGHEST, LOWEST, check_priority
from ports.run_state import Appended, Change, Created, Idempotency, NewRun, Orphan
from tests.contract.broken.run_states import BrokenRunState

IN_ORDER = "test_of_a_tenants_queued_runs_the_more_urgent_are_named_first"
IN_PLACE = "test_a_tenants_priorities_take_no_places_of_others"
KEPT = "test_a_run_keeps_the_priority_it_was_created_with"
FORKED = "test_a_fork_has_the_priority_of_the_run_it_comes_from"


class ForgetsThePriority(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        check_priority(new.priority)
        return await super().create(auth, replace(new, priority=DEFAULT))


class TestForgetsThePriority(BrokenRunState):
    broken = ForgetsThePriority
    caught_by = frozenset({IN_ORDER, IN_PLACE, KEPT, FORKED})


class AcceptsAnyPriority(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        return await super().create(auth, replace(new, priority=max(LOWEST, min(HIGHEST, new.priority))))


class TestAcceptsAnyPriority(BrokenRunState):
    broken = AcceptsAnyPriority
    caught_by = frozenset({"test_what_is_no_priority_is_refused_and_nothing_created"})


class ForksAtTheDefault(InprocRunState):
    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        created = await super().fork(auth, run_id, at, idempotency)
        if created.created:
            row = self._runs.row(auth, created.run.id)
            row.run = replace(row.run, priority=DEFAULT)
        return replace(created, run=self._runs.row(auth, created.run.id).run)


class TestForksAtTheDefault(BrokenRunState):
    broken = ForksAtTheDefault
    caught_by = frozenset({FORKED})


class NamesTheOldest(InprocRunState):
    """Whatever is urgent."""

    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        found = await super().orphans(auth, queued_for=queued_for, limit=200)
        return tuple(sorted(found, key=lambda one: one.run_id)[:limit])


class TestNamesTheOldest(BrokenRunState):
    broken = NamesTheOldest
    caught_by = frozenset({IN_ORDER, IN_PLACE})


class NamesTheMostUrgentOfAll(InprocRunState):
    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        found = await super().orphans(auth, queued_for=queued_for, limit=200)
        priority = {key[2]: row.run.priority for key, row in self._runs.rows.items()}
        return tuple(sorted(found, key=lambda one: (-priority[one.run_id], one.run_id))[:limit])


class TestNamesTheMostUrgentOfAll(BrokenRunState):
    broken = NamesTheMostUrgentOfAll
    caught_by = frozenset({IN_PLACE, "test_a_run_whose_worker_is_gone_keeps_its_place"})


class SaysNotWhatFor(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        appended = await super().append(auth, run_id, epoch, change)
        row = self._runs.row(auth, run_id)
        if row.run.status == "waiting":
            row.run = replace(row.run, waits_for="child")
        return appended


class TestSaysNotWhatFor(BrokenRunState):
    broken = SaysNotWhatFor
    caught_by = frozenset(
        {
            "test_a_waiting_run_tells_what_it_waits_for",
            "test_who_waits_for_something_else_is_not_woken_because_it_has_no_children",
        }
    )


class GoesOnWaitingForSomething(InprocRunState):
    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        before = self._runs.row(auth, run_id).run.waits_for
        woken = await super().wake(auth, run_id)
        row = self._runs.row(auth, run_id)
        row.run = replace(row.run, waits_for=before)
        return woken


class TestGoesOnWaitingForSomething(BrokenRunState):
    broken = GoesOnWaitingForSomething
    caught_by = frozenset({"test_a_run_that_waits_no_more_waits_for_nothing"})


class TakesWhatForWithoutWaiting(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        what = (change.waits_for or "child") if change.status == "waiting" else None
        return await super().append(auth, run_id, epoch, replace(change, waits_for=what))


class TestTakesWhatForWithoutWaiting(BrokenRunState):
    broken = TakesWhatForWithoutWaiting
    caught_by = frozenset({"test_what_for_comes_with_waiting_and_only_with_it"})


class WakesWhoeverHasNoChildren(InprocRunState):
    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        row = self._runs.row(auth, run_id)
        if row.run.status == "waiting":
            row.run = replace(row.run, waits_for="child")
        return await super().wake(auth, run_id)


class TestWakesWhoeverHasNoChildren(BrokenRunState):
    broken = WakesWhoeverHasNoChildren
    caught_by = frozenset({"test_who_waits_for_something_else_is_not_woken_because_it_has_no_children"})
