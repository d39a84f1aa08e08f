"""Broken run states: those that give runs to the wrong worker, at the wrong time, or to nobody."""

from datetime import timedelta
from typing import ClassVar

from msgspec.structs import replace

from adapters.inproc import run_state
from adapters.inproc.run_state import InprocRunState
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.errors import Conflict
from ports.ids import RunId, WorkerId
from ports.run_state import (
    NewEvent,
    Orphan,
    Renewal,
    Run,
)
from tests.contract.broken.run_states import BrokenRunState


class ClaimsWithoutAnEpoch(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        held = await super().claim(auth, run_id, worker)
        row = self._runs.row(auth, run_id)
        row.run = replace(row.run, epoch=1)
        return replace(held, epoch=1)


class TestClaimsWithoutAnEpoch(BrokenRunState):
    broken = ClaimsWithoutAnEpoch
    caught_by = frozenset(
        {
            "test_a_run_released_in_trouble_counts_like_one_that_lost_its_worker",
            "test_only_the_first_claim_says_the_run_started",
            "test_a_run_whose_worker_lapsed_is_taken_over_with_its_journal",
            "test_a_retired_workers_runs_can_be_claimed_at_once",
            "test_a_worker_that_was_taken_over_can_write_nothing",
            "test_a_released_run_is_claimable_at_once_and_counts_no_recovery",
            "test_taking_a_run_over_needs_no_room_and_makes_none",
            "test_a_run_that_was_decided_about_can_be_claimed_at_once",
            "test_a_worker_that_was_taken_over_makes_no_writes",
            "test_a_run_whose_children_have_ended_can_be_claimed_again",
        }
    )


class NamesWhoHeldARunLast(InprocRunState):
    last: ClassVar[dict[RunId, WorkerId]] = {}

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        held = await super().claim(auth, run_id, worker)
        self.last[run_id] = worker
        return held

    async def load(self, auth: AuthContext, run_id: RunId) -> Run:
        return replace(await super().load(auth, run_id), worker=self.last.get(run_id))


class TestNamesWhoHeldARunLast(BrokenRunState):
    broken = NamesWhoHeldARunLast
    caught_by = frozenset(
        {
            "test_a_repeated_decision_returns_the_run_as_it_stands",
            "test_a_decision_is_there_for_a_port_opened_anew",
            "test_a_decision_is_recorded_and_the_run_is_queued_again",
            "test_a_run_names_who_claimed_it_until_it_is_handed_back",
            "test_cancelling_a_terminal_run_returns_it_as_it_is",
            "test_a_waiting_run_is_held_by_nobody",
            "test_a_waiting_run_tells_what_it_waits_for",
        }
    )


class SaysStartedAtEveryClaim(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        again = self._runs.row(auth, run_id).run.epoch > 0
        held = await super().claim(auth, run_id, worker)
        if again:
            row = self._runs.row(auth, run_id)
            row.record(self._store, auth, self._clock.now(), NewEvent(type="run.started"))
            return row.run
        return held


class TestSaysStartedAtEveryClaim(BrokenRunState):
    broken = SaysStartedAtEveryClaim
    caught_by = frozenset(
        {
            "test_only_the_first_claim_says_the_run_started",
        }
    )


class ClaimsFromTheLiving(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        row = self._runs.row(auth, run_id)
        if row.worker != worker and row.worker is not None:
            self._runs.leases.pop(row.worker, None)
        return await super().claim(auth, run_id, worker)


class TestClaimsFromTheLiving(BrokenRunState):
    broken = ClaimsFromTheLiving
    caught_by = frozenset(
        {
            "test_a_run_held_by_a_live_worker_can_not_be_claimed",
            "test_racing_workers_claim_a_run_once",
            "test_renew_keeps_the_workers_runs_its_own",
        }
    )


class ClaimsTheDead(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        row = self._runs.row(auth, run_id)
        if row.run.status == "succeeded":
            row.run = replace(row.run, status="queued")
        return await super().claim(auth, run_id, worker)


class TestClaimsTheDead(BrokenRunState):
    broken = ClaimsTheDead
    caught_by = frozenset(
        {
            "test_a_terminal_run_can_not_be_claimed",
        }
    )


class NeverTakesOver(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        if self._runs.row(auth, run_id).run.status == "running":
            raise Conflict("somebody has it")
        return await super().claim(auth, run_id, worker)


class TestNeverTakesOver(BrokenRunState):
    broken = NeverTakesOver
    caught_by = frozenset(
        {
            "test_a_run_whose_worker_lapsed_is_taken_over_with_its_journal",
            "test_a_retired_workers_runs_can_be_claimed_at_once",
            "test_a_worker_that_was_taken_over_can_write_nothing",
            "test_a_worker_that_takes_over_learns_of_the_cancellation",
            "test_taking_a_run_over_needs_no_room_and_makes_none",
            "test_a_worker_that_was_taken_over_makes_no_writes",
        }
    )


class ClearsTheJournalAtTakeover(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        held = await super().claim(auth, run_id, worker)
        self._runs.row(auth, run_id).steps.clear()
        return held


class TestClearsTheJournalAtTakeover(BrokenRunState):
    broken = ClearsTheJournalAtTakeover
    caught_by = frozenset(
        {
            "test_a_run_whose_worker_lapsed_is_taken_over_with_its_journal",
            "test_a_repeated_decision_returns_the_run_as_it_stands",
            "test_a_planned_step_takes_intent_and_result_in_one_append",
            "test_a_planned_step_takes_one_more_intent_and_one_result",
            "test_a_fork_goes_on_with_the_next_step",
            "test_only_a_planned_step_is_begun_again",
            "test_a_run_whose_children_have_ended_can_be_claimed_again",
        }
    )


class ClaimsForWorkersWithoutALease(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        self._runs.leases.setdefault(worker, self._clock.now() + timedelta(minutes=1))
        return await super().claim(auth, run_id, worker)


class TestClaimsForWorkersWithoutALease(BrokenRunState):
    broken = ClaimsForWorkersWithoutALease
    caught_by = frozenset(
        {
            "test_a_worker_without_a_live_lease_claims_nothing",
        }
    )


class LetsAnybodyRenew(InprocRunState):
    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        return await super().renew(replace(auth, scopes=frozenset({RUNS_ANY_TENANT})), worker, duration)


class TestLetsAnybodyRenew(BrokenRunState):
    broken = LetsAnybodyRenew
    caught_by = frozenset(
        {
            "test_only_the_nodes_own_processes_renew_and_retire",
        }
    )


class RenewsOnlyOnce(InprocRunState):
    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        before = self._runs.leases.get(worker)
        renewal = await super().renew(auth, worker, duration)
        if before is not None:
            self._runs.leases[worker] = before
        return renewal


class TestRenewsOnlyOnce(BrokenRunState):
    broken = RenewsOnlyOnce
    caught_by = frozenset(
        {
            "test_a_run_of_a_live_worker_is_no_orphan",
            "test_renew_keeps_the_workers_runs_its_own",
        }
    )


class TellsTheTimeOfItsOwnProcess(InprocRunState):
    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        renewal = await super().renew(auth, worker, duration)
        return replace(renewal, now=renewal.now + timedelta(minutes=10))


class TestTellsTheTimeOfItsOwnProcess(BrokenRunState):
    broken = TellsTheTimeOfItsOwnProcess
    caught_by = frozenset({"test_renew_tells_the_time_that_runs_are_dated_by"})


class RetiresNobody(InprocRunState):
    async def retire(self, auth: AuthContext, worker: WorkerId) -> None:
        del worker
        auth.require(RUNS_ANY_TENANT)


class TestRetiresNobody(BrokenRunState):
    broken = RetiresNobody
    caught_by = frozenset(
        {
            "test_a_retired_workers_runs_can_be_claimed_at_once",
        }
    )


class ListsOrphansForAnybody(InprocRunState):
    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        return await super().orphans(
            replace(auth, scopes=frozenset({RUNS_ANY_TENANT})), queued_for=queued_for, limit=limit
        )


class TestListsOrphansForAnybody(BrokenRunState):
    broken = ListsOrphansForAnybody
    caught_by = frozenset(
        {
            "test_orphans_needs_its_scope",
        }
    )


class OverlooksLapsedWorkers(InprocRunState):
    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        found = await super().orphans(auth, queued_for=queued_for, limit=limit)
        rows = {row.run.id: row for row in self._runs.rows.values()}
        return tuple(one for one in found if rows[one.run_id].run.status == "queued")


class TestOverlooksLapsedWorkers(BrokenRunState):
    broken = OverlooksLapsedWorkers
    caught_by = frozenset(
        {
            "test_orphans_are_runs_queued_for_too_long_and_runs_of_lapsed_workers",
            "test_a_lapsed_run_of_a_tenant_without_room_is_an_orphan",
            "test_a_run_whose_worker_is_gone_keeps_its_place",
        }
    )


class CallsFreshRunsOrphans(InprocRunState):
    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        del queued_for
        return await super().orphans(auth, queued_for=timedelta(seconds=-1), limit=limit)


class TestCallsFreshRunsOrphans(BrokenRunState):
    broken = CallsFreshRunsOrphans
    caught_by = frozenset(
        {
            "test_orphans_are_runs_queued_for_too_long_and_runs_of_lapsed_workers",
            "test_of_a_tenants_queued_runs_the_more_urgent_are_named_first",
        }
    )


class CountsReleasesAsRecoveries(InprocRunState):
    async def release(self, auth: AuthContext, run_id: RunId, epoch: int, *, troubled: bool = False) -> None:
        del troubled
        await super().release(auth, run_id, epoch)
        row = self._runs.row(auth, run_id)
        row.run = replace(row.run, recoveries=row.run.recoveries + 1)


class TestCountsReleasesAsRecoveries(BrokenRunState):
    broken = CountsReleasesAsRecoveries
    caught_by = frozenset(
        {
            "test_a_released_run_is_claimable_at_once_and_counts_no_recovery",
        }
    )


class KeepsWhatWasReleased(InprocRunState):
    async def release(self, auth: AuthContext, run_id: RunId, epoch: int, *, troubled: bool = False) -> None:
        del troubled
        run_state.check_fence(self._runs.row(auth, run_id).run, epoch)


class TestKeepsWhatWasReleased(BrokenRunState):
    broken = KeepsWhatWasReleased
    caught_by = frozenset(
        {
            "test_a_run_released_in_trouble_counts_like_one_that_lost_its_worker",
            "test_only_the_first_claim_says_the_run_started",
            "test_a_run_names_who_claimed_it_until_it_is_handed_back",
            "test_nothing_is_appended_to_a_run_that_was_handed_back",
            "test_a_released_run_is_claimable_at_once_and_counts_no_recovery",
            "test_a_run_handed_back_makes_room_for_another",
            "test_a_run_handed_back_is_queued_like_any_other",
        }
    )
