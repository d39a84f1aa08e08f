"""Broken run states: those that mix up who works for whom, that wake too early, too late or twice, or strand a run."""

from datetime import datetime
from typing import ClassVar

import anyio.lowlevel
from msgspec.structs import replace

from adapters.inproc import run_state
from adapters.inproc.run_state import InprocRunState
from adapters.inproc.runs import RunRow, Runs
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.ids import RunId, TenantId, WorkerId
from ports.run_rules import created_event as honest_created_event
from ports.run_state import TERMINAL, Adrift, Appended, Change, NewEvent, NewRun, Origin, Parent, Run, RunFilter
from tests.contract.broken.run_states import BrokenRunState

honest_new_run = run_state.new_run
honest_forked = run_state.forked
honest_matches = run_state.matches
honest_may_go_on = run_state.may_go_on
honest_left_behind = run_state.left_behind


def forget_the_step(run_id: RunId, auth: AuthContext, new: NewRun, now: datetime) -> Run:
    run = honest_new_run(run_id, auth, new, now)
    return run if run.parent is None else replace(run, parent=replace(run.parent, step=0))


class TestForgetsWhichStepAChildIsOf(BrokenRunState):
    replaced: ClassVar = {"new_run": forget_the_step}
    caught_by = frozenset(
        {
            "test_a_run_made_for_another_names_it_for_good",
            "test_a_run_may_be_made_for_one_that_is_gone",
        }
    )


def keep_the_parent(source: RunRow, run_id: RunId, auth: AuthContext, origin: Origin, now: datetime) -> Run:
    return replace(honest_forked(source, run_id, auth, origin, now), parent=source.run.parent)


class TestForksIntoTheFamily(BrokenRunState):
    replaced: ClassVar = {"forked": keep_the_parent}
    caught_by = frozenset(
        {
            "test_a_fork_of_a_child_has_no_parent",
        }
    )


def tell_no_parent(agent_id: str, _parent: Parent | None) -> NewEvent:
    return honest_created_event(agent_id, None)


class TestTellsNoParent(BrokenRunState):
    replaced: ClassVar = {"created_event": tell_no_parent}
    caught_by = frozenset(
        {
            "test_a_run_made_for_another_names_it_for_good",
        }
    )


def match_any_parent(run: Run, where: RunFilter) -> bool:
    return honest_matches(run, replace(where, parent=None)) and (where.parent is None or run.parent is not None)


class TestListsEverybodysChildren(BrokenRunState):
    replaced: ClassVar = {"matches": match_any_parent}
    caught_by = frozenset(
        {
            "test_a_runs_children_are_listed_newest_first_and_nobody_elses",
        }
    )


class ClaimsTheWaiting(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        row = self._runs.row(auth, run_id)
        if row.run.status == "waiting":
            row.run = replace(row.run, status="queued")
        return await super().claim(auth, run_id, worker)


class TestClaimsTheWaiting(BrokenRunState):
    broken = ClaimsTheWaiting
    caught_by = frozenset(
        {
            "test_a_waiting_run_is_held_by_nobody",
        }
    )


class WaitsInItsWorkersHands(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        row = self._runs.row(auth, run_id)
        worker = row.worker
        appended = await super().append(auth, run_id, epoch, change)
        if row.run.status == "waiting":
            row.run = replace(row.run, worker=worker)
        return appended


class TestWaitsInItsWorkersHands(BrokenRunState):
    broken = WaitsInItsWorkersHands
    caught_by = frozenset(
        {
            "test_a_run_that_was_asked_to_end_before_it_waited_does_not_wait",
            "test_a_run_whose_children_have_ended_can_be_claimed_again",
            "test_a_waiting_run_is_held_by_nobody",
            "test_a_waiting_run_tells_what_it_waits_for",
        }
    )


class WaitsInItsPlace(InprocRunState):
    def _full(self, tenant: TenantId) -> bool:
        most = self._tenants.entitlements(tenant).max_active_runs
        return self._runs.count(tenant, "running") + self._runs.count(tenant, "waiting") >= most


class TestWaitsInItsPlace(BrokenRunState):
    broken = WaitsInItsPlace
    caught_by = frozenset(
        {
            "test_a_waiting_run_leaves_its_place_to_another",
        }
    )


class QueuesInsteadOfWaiting(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        status = "queued" if change.status == "waiting" else change.status
        return await super().append(
            auth,
            run_id,
            epoch,
            replace(change, status=status, waits_for=None if change.status == "waiting" else change.waits_for),
        )


class TestQueuesInsteadOfWaiting(BrokenRunState):
    broken = QueuesInsteadOfWaiting
    caught_by = frozenset(
        {
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_a_foreigner_wakes_nobody",
            "test_a_run_does_not_wait_beyond_its_deadline",
            "test_a_run_that_was_asked_to_end_before_it_waited_does_not_wait",
            "test_a_run_whose_children_have_ended_can_be_claimed_again",
            "test_a_waiting_run_is_held_by_nobody",
            "test_a_waiting_run_is_not_queued_and_no_orphan",
            "test_no_more_are_named_than_asked_for",
            "test_of_many_who_wake_a_run_one_does",
            "test_other_runs_children_keep_nobody_waiting",
            "test_runs_that_wait_for_nothing_any_more_are_to_be_woken",
            "test_what_for_comes_with_waiting_and_only_with_it",
            "test_a_waiting_run_tells_what_it_waits_for",
            "test_who_waits_for_something_else_is_woken_at_its_deadline",
        }
    )


def go_on_at_once(_runs: Runs, run: Run, _now: datetime) -> bool:
    return run.status == "waiting"


class TestWakesWhileChildrenAreOpen(BrokenRunState):
    replaced: ClassVar = {"may_go_on": go_on_at_once}
    caught_by = frozenset(
        {
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_a_run_does_not_wait_beyond_its_deadline",
            "test_a_run_with_an_open_child_goes_on_waiting",
            "test_open_children_of_a_run_that_has_ended_are_to_be_cancelled",
            "test_runs_that_wait_for_nothing_any_more_are_to_be_woken",
            "test_who_waits_for_something_else_is_not_woken_because_it_has_no_children",
        }
    )


def go_on_without_operators(runs: Runs, run: Run, now: datetime) -> bool:
    over = {*TERMINAL, "needs_operator"}
    return honest_may_go_on(runs, run, now) or (
        run.status == "waiting" and all(child.status in over for child in runs.children(run))
    )


class TestTakesAnOperatorsRunForEnded(BrokenRunState):
    replaced: ClassVar = {"may_go_on": go_on_without_operators}
    caught_by = frozenset(
        {
            "test_a_run_with_an_open_child_goes_on_waiting",
            "test_who_waits_for_something_else_is_not_woken_because_it_has_no_children",
        }
    )


def go_on_after_everybody(runs: Runs, run: Run, now: datetime) -> bool:
    others = (row.run for row in runs.rows.values() if row.run.parent is not None)
    return honest_may_go_on(runs, run, now) and all(other.status in TERMINAL for other in others)


class TestWaitsForOtherRunsChildren(BrokenRunState):
    replaced: ClassVar = {"may_go_on": go_on_after_everybody}
    caught_by = frozenset(
        {
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_a_run_does_not_wait_beyond_its_deadline",
            "test_a_run_that_was_asked_to_end_before_it_waited_does_not_wait",
            "test_other_runs_children_keep_nobody_waiting",
            "test_runs_that_wait_for_nothing_any_more_are_to_be_woken",
        }
    )


class TestWaitsBeyondTheDeadline(BrokenRunState):
    replaced: ClassVar = {
        "may_go_on": lambda runs, run, now: honest_may_go_on(runs, replace(run, deadline_at=None), now)
    }
    caught_by = frozenset(
        {
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_a_run_does_not_wait_beyond_its_deadline",
            "test_who_waits_for_something_else_is_woken_at_its_deadline",
        }
    )


class TestWaitsAlthoughAskedToEnd(BrokenRunState):
    replaced: ClassVar = {
        "may_go_on": lambda runs, run, now: honest_may_go_on(runs, replace(run, cancel_requested_at=None), now)
    }
    caught_by = frozenset(
        {
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_a_run_that_was_asked_to_end_before_it_waited_does_not_wait",
        }
    )


class WakesAnybody(InprocRunState):
    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        row = self._runs.row(auth, run_id)
        if row.run.status in {"running", "needs_operator"}:
            row.run = replace(row.run, status="waiting", waits_for="child")
        return await super().wake(auth, run_id)


class TestWakesAnybody(BrokenRunState):
    broken = WakesAnybody
    caught_by = frozenset(
        {
            "test_what_does_not_wait_is_not_woken",
        }
    )


class WakesTwice(InprocRunState):
    """As a store without the run's lock would."""

    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        before = self._runs.row(auth, run_id).run.status
        await anyio.lowlevel.checkpoint()
        await super().wake(auth, run_id)
        return before == "waiting" and self._runs.row(auth, run_id).run.status == "queued"


class TestWakesTwice(BrokenRunState):
    broken = WakesTwice
    caught_by = frozenset(
        {
            "test_of_many_who_wake_a_run_one_does",
        }
    )


class CountsAWakeAsARecovery(InprocRunState):
    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        woken = await super().wake(auth, run_id)
        if woken:
            row = self._runs.row(auth, run_id)
            row.run = replace(row.run, recoveries=row.run.recoveries + 1)
        return woken


class TestCountsAWakeAsARecovery(BrokenRunState):
    broken = CountsAWakeAsARecovery
    caught_by = frozenset(
        {
            "test_a_run_whose_children_have_ended_can_be_claimed_again",
        }
    )


class LooksBeforeItWaits(InprocRunState):
    """The children are looked at before the run waits, and never again: one that ends in between strands it."""

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        self._seen = getattr(self, "_seen", {})
        run = self._runs.row(auth, run_id).run
        if change.status == "waiting":
            self._seen[run_id] = any(child.status not in TERMINAL for child in self._runs.children(run))
            await anyio.lowlevel.checkpoint()
        return await super().append(auth, run_id, epoch, change)

    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        return not getattr(self, "_seen", {}).get(run_id, False) and await super().wake(auth, run_id)


class TestLooksBeforeItWaits(BrokenRunState):
    broken = LooksBeforeItWaits
    caught_by = frozenset(
        {
            "test_a_run_does_not_wait_beyond_its_deadline",
            "test_a_run_that_was_asked_to_end_before_it_waited_does_not_wait",
            "test_a_run_whose_children_have_ended_can_be_claimed_again",
            "test_children_that_end_while_their_parent_begins_to_wait_leave_it_awake",
        }
    )


class NamesTheAdriftToAnybody(InprocRunState):
    async def adrift(self, auth: AuthContext, *, limit: int) -> tuple[Adrift, ...]:
        return await super().adrift(replace(auth, scopes=auth.scopes | {RUNS_ANY_TENANT}), limit=limit)


class TestNamesTheAdriftToAnybody(BrokenRunState):
    broken = NamesTheAdriftToAnybody
    caught_by = frozenset(
        {
            "test_adrift_needs_its_scope",
        }
    )


class NamesTheAdriftOfOneTenant(InprocRunState):
    async def adrift(self, auth: AuthContext, *, limit: int) -> tuple[Adrift, ...]:
        found = await super().adrift(auth, limit=limit)
        return tuple(one for one in found if one.requester.tenant == found[0].requester.tenant)


class TestNamesTheAdriftOfOneTenant(BrokenRunState):
    broken = NamesTheAdriftOfOneTenant
    caught_by = frozenset(
        {
            "test_open_children_of_a_run_that_has_ended_are_to_be_cancelled",
            "test_runs_that_wait_for_nothing_any_more_are_to_be_woken",
        }
    )


class NamesTheYoungestAdrift(InprocRunState):
    async def adrift(self, auth: AuthContext, *, limit: int) -> tuple[Adrift, ...]:
        return (await super().adrift(auth, limit=200))[-limit:]


class TestNamesTheYoungestAdrift(BrokenRunState):
    broken = NamesTheYoungestAdrift
    caught_by = frozenset(
        {
            "test_no_more_are_named_than_asked_for",
        }
    )


class NamesNobodyToBeWoken(InprocRunState):
    async def adrift(self, auth: AuthContext, *, limit: int) -> tuple[Adrift, ...]:
        return tuple(one for one in await super().adrift(auth, limit=limit) if one.due == "cancel")


class TestNamesNobodyToBeWoken(BrokenRunState):
    broken = NamesNobodyToBeWoken
    caught_by = frozenset(
        {
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_no_more_are_named_than_asked_for",
            "test_runs_that_wait_for_nothing_any_more_are_to_be_woken",
            "test_who_waits_for_something_else_is_woken_at_its_deadline",
        }
    )


class TestLeavesChildrenAlone(BrokenRunState):
    replaced: ClassVar = {"left_behind": lambda _runs, _run: False}
    caught_by = frozenset(
        {
            "test_open_children_of_a_run_that_has_ended_are_to_be_cancelled",
        }
    )


class TestAsksAgainAndAgain(BrokenRunState):
    replaced: ClassVar = {
        "left_behind": lambda runs, run: honest_left_behind(runs, replace(run, cancel_requested_at=None))
    }
    caught_by = frozenset(
        {
            "test_open_children_of_a_run_that_has_ended_are_to_be_cancelled",
        }
    )


class TestEndsChildrenOfTheLiving(BrokenRunState):
    replaced: ClassVar = {
        "left_behind": lambda runs, run: (
            honest_left_behind(runs, run) or (run.parent is not None and run.status == "queued")
        )
    }
    caught_by = frozenset(
        {
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_open_children_of_a_run_that_has_ended_are_to_be_cancelled",
            "test_runs_that_wait_for_nothing_any_more_are_to_be_woken",
        }
    )
