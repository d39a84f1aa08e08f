"""Broken run states."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import run_state
from adapters.inproc.run_state import InprocRunState
from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import Store, own, store
from conformance import factories
from conformance.run_state import RunStateContract
from ports.clock import Clock
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import AgentOSError, Conflict, InvalidArgument, NotFound
from ports.ids import PrincipalId, RunId
from ports.messages import Page
from ports.run_state import (
    Appended,
    Change,
    Created,
    Idempotency,
    NewRun,
    Run,
    RunFilter,
    RunStatePort,
    Step,
    StepIntent,
    StepResult,
)
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocRunStateHarness, closing


class BrokenRunStateHarness(InprocRunStateHarness):
    def __init__(self, broken: type[InprocRunState], *, forgetful: bool) -> None:
        super().__init__()
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> RunStatePort:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> RunStatePort:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenRunState(Mutant, RunStateContract):
    broken: ClassVar[type[InprocRunState]] = InprocRunState
    forgetful: ClassVar[bool] = False
    replaced: ClassVar[dict[str, Callable[..., Any]]] = {}
    """Functions of `adapters.inproc.run_state` that are broken instead of the class."""

    @pytest.fixture
    async def harness(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BrokenRunStateHarness]:
        for name, function in self.replaced.items():
            monkeypatch.setattr(run_state, name, function)
        async with closing(BrokenRunStateHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenRunState):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class EveryRow(Runs):
    def row(self, auth: AuthContext, run_id: RunId) -> RunRow:
        for key, row in self.rows.items():
            if key[2] == run_id:
                return row
        return super().row(auth, run_id)


class ShowsEveryTenant(InprocRunState):
    def __init__(self, storage: Store, clock: Clock) -> None:
        super().__init__(storage, clock)
        self._runs = EveryRow(rows=self._runs.rows, keys=self._runs.keys, leases=self._runs.leases)


class TestShowsEveryTenant(BrokenRunState):
    broken = ShowsEveryTenant
    caught_by = frozenset(
        {
            "test_a_foreign_run_is_refused_like_an_absent_one",
            "test_a_foreigner_wakes_nobody",
        }
    )


class ListsEveryTenant(InprocRunState):
    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]:
        everybody = sorted({key[0] for key in self._runs.rows})
        pages = [
            await super(ListsEveryTenant, self).list_runs(
                replace(auth, tenant=tenant), where, limit=limit, cursor=cursor
            )
            for tenant in everybody
        ]
        mine = next((page.next_cursor for page in pages if page.next_cursor), None)
        return Page(items=tuple(run for page in pages for run in page.items)[:limit], next_cursor=mine)


class TestListsEveryTenant(BrokenRunState):
    broken = ListsEveryTenant
    caught_by = frozenset(
        {
            "test_a_listing_shows_the_callers_tenant_and_namespace_only",
            "test_another_tenants_cursor_shows_nothing_of_it",
            "test_a_runs_children_are_listed_newest_first_and_nobody_elses",
        }
    )


class TellsForeignFromAbsent(InprocRunState):
    async def load(self, auth: AuthContext, run_id: RunId) -> Run:
        if any(key[2] == run_id and key[:2] != (auth.tenant, auth.namespace) for key in self._runs.rows):
            raise NotFound(f"run {run_id!r} is not yours")
        return await super().load(auth, run_id)


class TestTellsForeignFromAbsent(BrokenRunState):
    broken = TellsForeignFromAbsent
    caught_by = frozenset(
        {
            "test_a_foreign_run_is_refused_like_an_absent_one",
        }
    )


class TestLosesEverythingAtReopen(BrokenRunState):
    forgetful = True
    caught_by = frozenset(
        {
            "test_run_event_and_key_are_there_for_a_port_opened_anew",
            "test_what_was_appended_is_there_for_a_port_opened_anew",
            "test_a_fork_is_there_for_a_port_opened_anew",
            "test_a_decision_is_there_for_a_port_opened_anew",
            "test_a_run_made_for_another_names_it_for_good",
        }
    )


class CreatesWithoutAnEvent(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        created = await super().create(auth, new)
        row = self._runs.row(auth, created.run.id)
        if created.created:
            row.events.clear()
        return created


class TestCreatesWithoutAnEvent(BrokenRunState):
    broken = CreatesWithoutAnEvent
    caught_by = frozenset(
        {
            "test_a_created_run_has_run_created_as_its_only_event",
            "test_run_event_and_key_are_there_for_a_port_opened_anew",
            "test_a_claimed_run_is_running_at_the_next_epoch_and_says_it_started",
            "test_only_the_first_claim_says_the_run_started",
            "test_nothing_is_appended_to_a_run_that_was_handed_back",
            "test_events_get_the_sequence_numbers_after_the_last_one",
            "test_racing_appends_leave_no_gap",
            "test_cancel_racing_completion_leaves_one_end",
            "test_a_run_ends_with_its_output_and_its_terminal_event_last",
            "test_a_run_nobody_holds_is_cancelled_at_once",
            "test_a_decision_is_told",
            "test_a_run_cancelled_while_nobody_holds_it_leaves_no_step_begun",
            "test_a_decided_step_of_a_cancelled_run_keeps_its_decision",
            "test_a_run_made_for_another_names_it_for_good",
            "test_a_run_that_was_asked_for_has_no_parent",
        }
    )


class IgnoresIdempotency(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        self._runs.keys.clear()
        return await super().create(auth, new)


class TestIgnoresIdempotency(BrokenRunState):
    broken = IgnoresIdempotency
    caught_by = frozenset(
        {
            "test_run_event_and_key_are_there_for_a_port_opened_anew",
            "test_a_repeated_key_returns_the_first_run_and_creates_nothing",
            "test_a_repeated_key_returns_the_run_as_it_is_by_now",
            "test_racing_creates_with_one_key_make_one_run",
            "test_a_key_reused_for_another_request_conflicts_and_changes_nothing",
            "test_racing_repeats_use_up_what_one_does",
            "test_a_repeat_is_never_refused_and_uses_nothing_up",
        }
    )


class ChecksThenCreates(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        if await self.recall(auth, new.idempotency) is not None:
            return await super().create(auth, new)
        # Between the question and the act somebody else asks the same.
        await self._clock.sleep(timedelta(0))
        self._runs.keys.clear()
        return await super().create(auth, new)


class TestChecksThenCreates(BrokenRunState):
    broken = ChecksThenCreates
    caught_by = frozenset(
        {
            "test_racing_creates_with_one_key_make_one_run",
            "test_racing_repeats_use_up_what_one_does",
            "test_a_repeat_is_never_refused_and_uses_nothing_up",
        }
    )


class IgnoresFingerprints(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        return await super().create(auth, replace(new, idempotency=replace(new.idempotency, fingerprint="sha256:any")))

    async def recall(self, auth: AuthContext, idempotency: Idempotency) -> Run | None:
        return await super().recall(auth, replace(idempotency, fingerprint="sha256:any"))


class TestIgnoresFingerprints(BrokenRunState):
    broken = IgnoresFingerprints
    caught_by = frozenset(
        {
            "test_a_key_reused_for_another_request_conflicts_and_changes_nothing",
            "test_recall_for_another_request_conflicts",
            "test_a_repeated_decision_returns_the_run_as_it_stands",
            "test_forking_again_with_the_same_key_gives_the_first_fork",
        }
    )


class SharesKeysBetweenPrincipals(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        return await super().create(replace(auth, principal=PrincipalId("usr_ann")), new)


class TestSharesKeysBetweenPrincipals(BrokenRunState):
    broken = SharesKeysBetweenPrincipals
    caught_by = frozenset(
        {
            "test_another_principal_or_route_with_the_same_key_makes_another_run",
        }
    )


class RecallCreates(InprocRunState):
    async def recall(self, auth: AuthContext, idempotency: Idempotency) -> Run | None:
        return (await self.create(auth, factories.new_run(idempotency))).run


class TestRecallCreates(BrokenRunState):
    broken = RecallCreates
    caught_by = frozenset(
        {
            "test_recall_gives_the_run_a_key_made_and_creates_nothing",
            "test_a_refusal_uses_up_neither_key_nor_room",
        }
    )


class TestIgnoresFencing(BrokenRunState):
    replaced: ClassVar = {"check_fence": lambda _run, _epoch: None}
    caught_by = frozenset(
        {
            "test_a_worker_that_was_taken_over_can_write_nothing",
            "test_nothing_is_appended_to_a_run_that_was_handed_back",
            "test_nothing_is_appended_after_the_end",
            "test_a_worker_that_was_taken_over_makes_no_writes",
            "test_a_waiting_run_is_held_by_nobody",
        }
    )


def fence_by_status(run: Run, _epoch: int) -> None:
    if run.status != "running":
        raise Conflict("not running", code="fenced")


class TestFencesByStatusOnly(BrokenRunState):
    replaced: ClassVar = {"check_fence": fence_by_status}
    caught_by = frozenset(
        {
            "test_a_worker_that_was_taken_over_can_write_nothing",
            "test_a_worker_that_was_taken_over_makes_no_writes",
        }
    )


def fence_by_epoch(run: Run, epoch: int) -> None:
    if run.epoch != epoch:
        raise Conflict("another epoch", code="fenced")


class TestFencesByEpochOnly(BrokenRunState):
    """Lets a run be written to after it has ended."""

    replaced: ClassVar = {"check_fence": fence_by_epoch}
    caught_by = frozenset(
        {
            "test_nothing_is_appended_to_a_run_that_was_handed_back",
            "test_nothing_is_appended_after_the_end",
            "test_a_worker_that_was_taken_over_makes_no_writes",
            "test_a_waiting_run_is_held_by_nobody",
        }
    )


honest_next_step = run_state.next_step


def take_any_result(known: Step | None, fact: StepIntent | StepResult, *, epoch: int, now: datetime) -> Step:
    if known is not None and isinstance(fact, StepResult):
        known = replace(known, status="started")
    return honest_next_step(known, fact, epoch=epoch, now=now)


class TestAcceptsASecondResult(BrokenRunState):
    replaced: ClassVar = {"next_step": take_any_result}
    caught_by = frozenset(
        {
            "test_a_step_is_recorded_at_most_once_and_the_whole_append_is_refused",
            "test_only_a_planned_step_is_begun_again",
            "test_the_writes_of_a_refused_append_are_not_made",
        }
    )


def take_any_intent(known: Step | None, fact: StepIntent | StepResult, *, epoch: int, now: datetime) -> Step:
    return honest_next_step(known if isinstance(fact, StepResult) else None, fact, epoch=epoch, now=now)


class TestAcceptsASecondIntent(BrokenRunState):
    replaced: ClassVar = {"next_step": take_any_intent}
    caught_by = frozenset(
        {
            "test_a_step_is_recorded_at_most_once_and_the_whole_append_is_refused",
            "test_a_repeated_decision_returns_the_run_as_it_stands",
            "test_a_planned_step_takes_intent_and_result_in_one_append",
            "test_a_planned_step_takes_one_more_intent_and_one_result",
            "test_a_fork_goes_on_with_the_next_step",
            "test_only_a_planned_step_is_begun_again",
        }
    )


class WritesStepByStep(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        for step in change.steps:
            await super().append(auth, run_id, epoch, Change(steps=(step,)))
        return await super().append(auth, run_id, epoch, replace(change, steps=()))


class TestWritesStepByStep(BrokenRunState):
    broken = WritesStepByStep
    caught_by = frozenset(
        {
            "test_a_step_is_recorded_at_most_once_and_the_whole_append_is_refused",
            "test_only_a_planned_step_is_begun_again",
            "test_a_write_that_memory_would_not_take_refuses_the_whole_append",
            "test_the_writes_of_a_refused_append_are_not_made",
        }
    )


class WritesEventsBeforeItRefuses(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        try:
            return await super().append(auth, run_id, epoch, change)
        except AgentOSError:
            if change.events and (auth.tenant, auth.namespace, run_id) in self._runs.rows:
                self._runs.row(auth, run_id).record(self._store, auth, self._clock.now(), change.events[0])
            raise


class TestWritesEventsBeforeItRefuses(BrokenRunState):
    broken = WritesEventsBeforeItRefuses
    caught_by = frozenset(
        {
            "test_a_worker_that_was_taken_over_can_write_nothing",
            "test_nothing_is_appended_to_a_run_that_was_handed_back",
            "test_a_step_is_recorded_at_most_once_and_the_whole_append_is_refused",
            "test_an_ending_that_is_not_one_is_refused",
            "test_nothing_is_appended_after_the_end",
            "test_a_write_that_memory_would_not_take_refuses_the_whole_append",
            "test_a_waiting_run_is_held_by_nobody",
        }
    )


class LeavesGaps(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        appended = await super().append(auth, run_id, epoch, change)
        row = self._runs.row(auth, run_id)
        if change.events:
            row.events[-1] = replace(row.events[-1], sequence=row.events[-1].sequence + 1)
        return appended


class TestLeavesGaps(BrokenRunState):
    broken = LeavesGaps
    caught_by = frozenset(
        {
            "test_events_get_the_sequence_numbers_after_the_last_one",
            "test_racing_appends_leave_no_gap",
            "test_cancel_racing_completion_leaves_one_end",
            "test_a_run_ends_with_its_output_and_its_terminal_event_last",
        }
    )


class ForgetsUsage(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        used = self._runs.row(auth, run_id).run.usage
        appended = await super().append(auth, run_id, epoch, change)
        row = self._runs.row(auth, run_id)
        row.run = replace(row.run, usage=used)
        return appended


class TestForgetsUsage(BrokenRunState):
    broken = ForgetsUsage
    caught_by = frozenset(
        {
            "test_an_append_becomes_true_as_a_whole",
            "test_a_fork_takes_over_the_steps_before_it_with_their_results",
        }
    )


class TestEndsHoweverItIsAsked(BrokenRunState):
    """Does not look for the terminal event."""

    replaced: ClassVar = {"check_change": lambda _change: None}
    caught_by = frozenset(
        {
            "test_an_ending_that_is_not_one_is_refused",
            "test_the_writes_of_a_refused_append_are_not_made",
            "test_what_for_comes_with_waiting_and_only_with_it",
        }
    )


class CancelsHeldRunsAtOnce(InprocRunState):
    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        row = self._runs.row(auth, run_id)
        if row.run.status == "running":
            row.run = replace(row.run, status="waiting", waits_for="child")
        return await super().cancel(auth, run_id, reason=reason, idempotency=idempotency)


class TestCancelsHeldRunsAtOnce(BrokenRunState):
    broken = CancelsHeldRunsAtOnce
    caught_by = frozenset(
        {
            "test_cancelling_a_held_run_is_reported_to_its_worker",
            "test_a_worker_that_takes_over_learns_of_the_cancellation",
            "test_cancelling_a_held_run_leaves_its_steps_to_its_worker",
            "test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run",
            "test_a_run_that_was_asked_to_end_before_it_waited_does_not_wait",
        }
    )


class OnlyAsksToCancel(InprocRunState):
    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        row = self._runs.row(auth, run_id)
        if row.run.status == "queued":
            row.run = replace(row.run, cancel_requested_at=self._clock.now())
            return row.run
        return await super().cancel(auth, run_id, reason=reason, idempotency=idempotency)


class TestOnlyAsksToCancel(BrokenRunState):
    broken = OnlyAsksToCancel
    caught_by = frozenset(
        {
            "test_a_key_that_cancelled_one_run_does_not_cancel_another",
            "test_a_repeated_key_returns_the_run_as_it_is_by_now",
            "test_a_run_nobody_holds_is_cancelled_at_once",
            "test_a_backlog_has_room_again_when_a_run_was_started_or_cancelled",
            "test_a_refusal_uses_up_neither_key_nor_room",
            "test_a_backlog_limit_that_was_lowered_holds_for_what_is_queued_already",
            "test_a_run_cancelled_while_nobody_holds_it_leaves_no_step_begun",
            "test_a_decided_step_of_a_cancelled_run_keeps_its_decision",
            "test_children_are_listed_in_pages_and_by_status",
        }
    )


class CancelsAgainAndAgain(InprocRunState):
    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        row = self._runs.row(auth, run_id)
        row.run = replace(row.run, cancel_requested_at=None)
        run = await super().cancel(auth, run_id, reason=reason, idempotency=idempotency)
        row.run = replace(row.run, cancel_requested_at=self._clock.now())
        return replace(run, cancel_requested_at=row.run.cancel_requested_at)


class TestCancelsAgainAndAgain(BrokenRunState):
    broken = CancelsAgainAndAgain
    caught_by = frozenset(
        {
            "test_cancelling_a_held_run_again_changes_nothing",
            "test_cancelling_a_terminal_run_returns_it_as_it_is",
        }
    )


class ForgetsKeysOfCancellations(InprocRunState):
    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        del idempotency
        return await super().cancel(auth, run_id, reason=reason)


class TestForgetsKeysOfCancellations(BrokenRunState):
    broken = ForgetsKeysOfCancellations
    caught_by = frozenset({"test_a_key_that_cancelled_one_run_does_not_cancel_another"})


class KeepsCancellationsToItself(InprocRunState):
    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        return replace(await super().append(auth, run_id, epoch, change), cancel_requested=False)


class TestKeepsCancellationsToItself(BrokenRunState):
    broken = KeepsCancellationsToItself
    caught_by = frozenset(
        {
            "test_cancelling_a_held_run_is_reported_to_its_worker",
        }
    )


class ListsOldestFirst(InprocRunState):
    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]:
        page = await super().list_runs(auth, where, limit=limit, cursor=cursor)
        return replace(page, items=page.items[::-1])


class TestListsOldestFirst(BrokenRunState):
    broken = ListsOldestFirst
    caught_by = frozenset(
        {
            "test_a_listing_gives_the_newest_first",
            "test_following_the_cursor_visits_every_run_once_whatever_is_created_meanwhile",
            "test_a_filter_keeps_the_runs_that_match",
            "test_a_runs_children_are_listed_newest_first_and_nobody_elses",
        }
    )


class PagesByOffset(InprocRunState):
    """What is created meanwhile shifts the pages."""

    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]:
        start = 0 if cursor is None else decode_cursor("offset", cursor, int)
        everything = (await super().list_runs(auth, where, limit=200)).items
        more = len(everything) > start + limit
        return Page(
            items=everything[start : start + limit],
            next_cursor=encode_cursor("offset", start + limit) if more else None,
        )


class TestPagesByOffset(BrokenRunState):
    broken = PagesByOffset
    caught_by = frozenset(
        {
            "test_following_the_cursor_visits_every_run_once_whatever_is_created_meanwhile",
        }
    )


class TakesAnyCursor(InprocRunState):
    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]:
        try:
            return await super().list_runs(auth, where, limit=limit, cursor=cursor)
        except InvalidArgument:
            return await super().list_runs(auth, where, limit=limit)


class TestTakesAnyCursor(BrokenRunState):
    broken = TakesAnyCursor
    caught_by = frozenset(
        {
            "test_a_cursor_that_can_not_be_ours_is_refused",
        }
    )


def cut(value: Any) -> Any:  # whatever a caller hands over
    """A copy in which no text is longer than a column of yore."""
    match value:
        case str():
            return value[:65_535]
        case dict():
            return {key: cut(one) for key, one in value.items()}
        case list():
            return [cut(one) for one in value]
    return own(value)


class TestCutsWhatIsLarge(BrokenRunState):
    replaced: ClassVar = {"own": cut}
    caught_by = frozenset(
        {
            "test_a_megabyte_of_input_is_whole_wherever_the_run_is_returned",
            "test_equal_large_bodies_of_two_tenants_are_each_their_own",
            "test_a_megabyte_of_a_step_or_an_output_is_read_as_it_was_written",
        }
    )
