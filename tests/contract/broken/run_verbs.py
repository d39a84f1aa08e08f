"""Run states that are broken in what forks a run or decides about a step."""

from datetime import datetime, timedelta
from typing import ClassVar

from msgspec.structs import replace

from adapters.inproc import run_state
from adapters.inproc.run_state import InprocRunState
from adapters.inproc.runs import KeyScope, RunRow
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.ids import RunId
from ports.run_state import (
    Created,
    Idempotency,
    NewEvent,
    Origin,
    Resolution,
    Resolved,
    Run,
    Step,
    StepIntent,
    StepResult,
)
from tests.contract.broken.run_states import BrokenRunState

honest_forked = run_state.forked
honest_next_step = run_state.next_step
honest_decided = run_state.decided


class TestForksWithoutLineage(BrokenRunState):
    replaced: ClassVar = {"forked": lambda *given: replace(honest_forked(*given), forked_from=None)}
    caught_by = frozenset(
        {
            "test_a_fork_is_a_new_run_like_the_one_it_comes_from",
            "test_a_fork_can_be_forked",
        }
    )


class TestForksInTheNameOfTheFirstRequester(BrokenRunState):
    replaced: ClassVar = {
        "forked": lambda source, *given: replace(honest_forked(source, *given), requester=source.run.requester)
    }
    caught_by = frozenset({"test_a_fork_is_a_new_run_like_the_one_it_comes_from"})


def keep_the_deadline(source: RunRow, run_id: RunId, auth: AuthContext, origin: Origin, now: datetime) -> Run:
    return replace(honest_forked(source, run_id, auth, origin, now), deadline_at=source.run.deadline_at)


class TestForksWithTheOldDeadline(BrokenRunState):
    replaced: ClassVar = {"forked": keep_the_deadline}
    caught_by = frozenset({"test_a_fork_is_a_new_run_like_the_one_it_comes_from"})


class TestForksWithTheTimeSpentWaiting(BrokenRunState):
    replaced: ClassVar = {
        "forked": lambda source, *given: honest_forked(
            RunRow(run=source.run, queued_at=source.queued_at, waited=timedelta(0)), *given
        )
    }
    caught_by = frozenset({"test_a_fork_does_not_inherit_the_time_spent_waiting"})


class TestKeepsTheOriginToItself(BrokenRunState):
    replaced: ClassVar = {
        "forked_event": lambda agent_id, _origin: NewEvent(type="run.created", data={"agent_id": agent_id})
    }
    caught_by = frozenset({"test_a_forks_first_event_names_where_it_comes_from"})


class ForksAnEmptyJournal(InprocRunState):
    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        created = await super().fork(auth, run_id, at, idempotency)
        if created.created:
            self._runs.row(auth, created.run.id).steps.clear()
        return created


class TestForksAnEmptyJournal(BrokenRunState):
    broken = ForksAnEmptyJournal
    caught_by = frozenset(
        {
            "test_the_run_a_fork_comes_from_stays_as_it_is",
            "test_a_fork_takes_over_the_steps_before_it_with_their_results",
            "test_a_fork_goes_on_with_the_next_step",
            "test_a_fork_can_be_forked",
        }
    )


class SharesTheWholeJournal(InprocRunState):
    """What the one run writes afterwards is in the other's journal as well."""

    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        created = await super().fork(auth, run_id, at, idempotency)
        if created.created:
            self._runs.row(auth, created.run.id).steps = self._runs.row(auth, run_id).steps
        return created


class TestSharesTheWholeJournal(BrokenRunState):
    broken = SharesTheWholeJournal
    caught_by = frozenset(
        {
            "test_the_run_a_fork_comes_from_stays_as_it_is",
            "test_a_fork_takes_over_the_steps_before_it_with_their_results",
            "test_a_fork_goes_on_with_the_next_step",
            "test_a_fork_can_be_forked",
        }
    )


class TakesTheStepsAway(InprocRunState):
    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        created = await super().fork(auth, run_id, at, idempotency)
        journal = self._runs.row(auth, run_id).steps
        for n in range(1, at + 1):
            journal.pop(n, None)
        return created


class TestTakesTheStepsAway(BrokenRunState):
    broken = TakesTheStepsAway
    caught_by = frozenset({"test_the_run_a_fork_comes_from_stays_as_it_is"})


class TestCountsUsageTwice(BrokenRunState):
    replaced: ClassVar = {"taken_over": lambda step: replace(step, epoch=0)}
    caught_by = frozenset({"test_a_fork_takes_over_the_steps_before_it_with_their_results"})


class TestForksWhateverIsThere(BrokenRunState):
    """Looks for the steps, not for their results."""

    replaced: ClassVar = {"has_results": lambda steps, at: all(n in steps for n in range(1, min(at, 100) + 1))}
    caught_by = frozenset(
        {
            "test_a_step_without_a_result_can_not_be_taken_over",
            "test_a_step_of_unknown_outcome_can_not_be_taken_over",
            "test_a_refused_fork_does_not_burn_its_key",
            "test_a_planned_step_can_not_be_taken_over_by_a_fork",
        }
    )


class TestForksBelowTheBeginning(BrokenRunState):
    replaced: ClassVar = {"check_fork": lambda _at: None}
    caught_by = frozenset({"test_a_fork_can_not_begin_below_the_beginning"})


class ForksAgain(InprocRunState):
    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        self._runs.keys.pop(KeyScope.of(auth, idempotency), None)
        return await super().fork(auth, run_id, at, idempotency)


class TestForksAgain(BrokenRunState):
    broken = ForksAgain
    caught_by = frozenset(
        {
            "test_a_fork_is_there_for_a_port_opened_anew",
            "test_forking_again_with_the_same_key_gives_the_first_fork",
            "test_racing_forks_with_one_key_make_one_run",
            "test_a_key_reused_for_another_fork_conflicts",
            "test_a_fork_needs_room_like_any_other_run",
        }
    )


class BurnsKeys(InprocRunState):
    """Remembers a key although nothing came of it."""

    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        try:
            return await super().fork(auth, run_id, at, idempotency)
        except AgentOSError:
            self._burn(auth, run_id, idempotency)
            raise

    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        try:
            return await super().resolve(auth, run_id, n, resolution, idempotency)
        except AgentOSError:
            self._burn(auth, run_id, idempotency)
            raise

    def _burn(self, auth: AuthContext, run_id: RunId, idempotency: Idempotency) -> None:
        if (row := self._runs.rows.get((auth.tenant, auth.namespace, run_id))) is not None:
            self._runs.keys.setdefault(KeyScope.of(auth, idempotency), (idempotency.fingerprint, row))


class TestBurnsKeys(BrokenRunState):
    broken = BurnsKeys
    caught_by = frozenset(
        {
            "test_a_refused_fork_does_not_burn_its_key",
            "test_a_refused_decision_does_not_burn_its_key",
        }
    )


class TestForgetsTheDecision(BrokenRunState):
    """Everything it is told becomes a completed step without an output."""

    replaced: ClassVar = {
        "decided": lambda step, _resolution, now: replace(
            step, status="completed", output=None, error=None, finished_at=now
        )
    }
    caught_by = frozenset(
        {
            "test_a_decision_is_recorded_and_the_run_is_queued_again",
            "test_a_run_waits_until_the_last_unknown_step_is_decided",
            "test_a_planned_step_takes_one_more_intent_and_one_result",
            "test_a_planned_step_takes_intent_and_result_in_one_append",
            "test_a_planned_step_can_not_be_taken_over_by_a_fork",
            "test_a_repeated_decision_returns_the_run_as_it_stands",
        }
    )


class TestTellsAnotherDecision(BrokenRunState):
    replaced: ClassVar = {
        "resolved_event": lambda n, _resolution: NewEvent(type="step.completed", data={"step": n}),
    }
    caught_by = frozenset({"test_a_decision_is_told", "test_a_decided_step_of_a_cancelled_run_keeps_its_decision"})


class QueuesAtTheFirstDecision(InprocRunState):
    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        resolved = await super().resolve(auth, run_id, n, resolution, idempotency)
        row = self._runs.row(auth, run_id)
        if resolved.resolved:
            row.run = replace(row.run, status="queued")
        return replace(resolved, run=row.run)


class TestQueuesAtTheFirstDecision(BrokenRunState):
    broken = QueuesAtTheFirstDecision
    caught_by = frozenset(
        {
            "test_a_decision_is_told",
            "test_a_run_waits_until_the_last_unknown_step_is_decided",
            "test_operators_who_decide_at_the_same_moment_leave_no_run_behind",
            "test_the_time_a_run_waited_for_an_operator_is_not_counted",
        }
    )


class LooksBeforeItDecides(InprocRunState):
    """Whether this is the last decision is read before the others at this moment are there."""

    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        unknown = [step.n for step in await self.steps(auth, run_id) if step.status == "unknown"]
        await self._clock.sleep(timedelta(0))
        resolved = await super().resolve(auth, run_id, n, resolution, idempotency)
        row = self._runs.row(auth, run_id)
        if resolved.resolved and unknown != [n]:
            row.run = replace(row.run, status="needs_operator")
        return replace(resolved, run=row.run)


class TestLooksBeforeItDecides(BrokenRunState):
    broken = LooksBeforeItDecides
    caught_by = frozenset({"test_operators_who_decide_at_the_same_moment_leave_no_run_behind"})


class NeverQueues(InprocRunState):
    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        resolved = await super().resolve(auth, run_id, n, resolution, idempotency)
        row = self._runs.row(auth, run_id)
        if resolved.resolved:
            row.run = replace(row.run, status="waiting", waits_for="child")
        return replace(resolved, run=row.run)


class TestNeverQueues(BrokenRunState):
    broken = NeverQueues
    caught_by = frozenset(
        {
            "test_a_decision_is_recorded_and_the_run_is_queued_again",
            "test_a_decision_is_told",
            "test_a_run_waits_until_the_last_unknown_step_is_decided",
            "test_operators_who_decide_at_the_same_moment_leave_no_run_behind",
            "test_a_run_that_was_decided_about_can_be_claimed_at_once",
            "test_the_time_a_run_waited_for_an_operator_is_not_counted",
            "test_a_planned_step_takes_one_more_intent_and_one_result",
            "test_a_planned_step_takes_intent_and_result_in_one_append",
            "test_only_a_planned_step_is_begun_again",
            "test_a_planned_step_can_not_be_taken_over_by_a_fork",
            "test_a_repeated_decision_returns_the_run_as_it_stands",
        }
    )


class CountsTheWait(InprocRunState):
    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        ends = self._runs.row(auth, run_id).run.deadline_at
        resolved = await super().resolve(auth, run_id, n, resolution, idempotency)
        row = self._runs.row(auth, run_id)
        row.run, row.waited = replace(row.run, deadline_at=ends), timedelta(0)
        return replace(resolved, run=row.run)


class TestCountsTheWait(BrokenRunState):
    broken = CountsTheWait
    caught_by = frozenset({"test_the_time_a_run_waited_for_an_operator_is_not_counted"})


class DecidesAboutAnything(InprocRunState):
    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        row = self._runs.row(auth, run_id)
        if self._runs.keyed(auth, idempotency) is None and n in row.steps:
            row.steps[n] = replace(row.steps[n], status="unknown")
            row.run = replace(row.run, status="needs_operator")
        return await super().resolve(auth, run_id, n, resolution, idempotency)


class TestDecidesAboutAnything(BrokenRunState):
    broken = DecidesAboutAnything
    caught_by = frozenset(
        {
            "test_only_a_step_of_unknown_outcome_can_be_decided",
            "test_only_a_run_that_waits_for_an_operator_is_decided_about",
            "test_a_step_is_decided_about_once",
        }
    )


class DecidesAgain(InprocRunState):
    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        self._runs.keys.pop(KeyScope.of(auth, idempotency), None)
        return await super().resolve(auth, run_id, n, resolution, idempotency)


class TestDecidesAgain(BrokenRunState):
    broken = DecidesAgain
    caught_by = frozenset(
        {
            "test_a_repeated_decision_returns_the_run_as_it_stands",
            "test_a_key_reused_for_another_decision_conflicts",
        }
    )


def begin_anything_again(known: Step | None, fact: StepIntent | StepResult, *, epoch: int, now: datetime) -> Step:
    if isinstance(fact, StepIntent) and fact.again:
        return honest_next_step(None, replace(fact, again=False), epoch=epoch, now=now)
    return honest_next_step(known, fact, epoch=epoch, now=now)


class TestBeginsAnythingAgain(BrokenRunState):
    replaced: ClassVar = {"next_step": begin_anything_again}
    caught_by = frozenset(
        {
            "test_a_planned_step_takes_one_more_intent_and_one_result",
            "test_only_a_planned_step_is_begun_again",
        }
    )


def take_planned_for_begun(known: Step | None, fact: StepIntent | StepResult, *, epoch: int, now: datetime) -> Step:
    if known is not None and known.status == "planned" and isinstance(fact, StepResult):
        known = replace(known, status="started")
    return honest_next_step(known, fact, epoch=epoch, now=now)


class TestTakesPlannedForBegun(BrokenRunState):
    replaced: ClassVar = {"next_step": take_planned_for_begun}
    caught_by = frozenset({"test_only_a_planned_step_is_begun_again"})


def never_begin_again(known: Step | None, fact: StepIntent | StepResult, *, epoch: int, now: datetime) -> Step:
    if isinstance(fact, StepIntent):
        fact = replace(fact, again=False)
    return honest_next_step(known, fact, epoch=epoch, now=now)


class TestNeverBeginsAgain(BrokenRunState):
    replaced: ClassVar = {"next_step": never_begin_again}
    caught_by = frozenset(
        {
            "test_a_planned_step_takes_one_more_intent_and_one_result",
            "test_a_planned_step_takes_intent_and_result_in_one_append",
            "test_a_repeated_decision_returns_the_run_as_it_stands",
            "test_only_a_planned_step_is_begun_again",
        }
    )
