"""RunState: forks of a run, and what operators decide about steps of unknown outcome."""

from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, idempotency, intent, new_run, result, telling
from conformance.harness import RunStateHarness
from conformance.people import ACME, ACME_BEN, NODE
from conformance.run_state_claims import ANN, BOB, LEASE, claimed, count_runs, create
from ports.errors import AgentOSError, Conflict, InvalidArgument
from ports.ids import RunId
from ports.messages import Fault, Usage
from ports.run_state import Change, Idempotency, Origin, Resolution, Resolved, Run, RunStatePort, StepResult

FORK: Final = "POST /v1/runs/{run_id}:fork"
RESOLVE: Final = "POST /v1/runs/{run_id}:resolve"
USAGE: Final = Usage(prompt_tokens=10, completion_tokens=5, cost_nanousd=7)
UNKNOWN: Final = Fault(code="outcome_unknown", message="interrupted")
DONE: Final = Resolution(decision="done", output={"sent": True})
FAIL: Final = Resolution(decision="fail", message="it never arrived")
RETRY: Final = Resolution(decision="retry")
TEN_MINUTES: Final = timedelta(minutes=10)
SOON: Final = timedelta(minutes=1)
"""More than a storage whose clock really runs needs for one test."""


def fork_key(key: str | None = None, *, fingerprint: str = "sha256:same") -> Idempotency:
    return idempotency(key, fingerprint=fingerprint, route=FORK)


def resolve_key(key: str | None = None, *, fingerprint: str = "sha256:same") -> Idempotency:
    return idempotency(key, fingerprint=fingerprint, route=RESOLVE)


def failed(n: int) -> StepResult:
    return StepResult(n=n, status="failed", error=Fault(code="tool_failed", message="no"))


def unknown(n: int) -> StepResult:
    return StepResult(n=n, status="unknown", error=UNKNOWN)


async def worked(state: RunStatePort) -> Run:
    """A running run whose steps 1 and 2 have results, and 3 has none."""
    run = await claimed(state)
    steps = (intent(1), replace(result(1), usage=USAGE), intent(2), failed(2), intent(3))
    await state.append(ACME, run.id, run.epoch, Change(steps=steps, events=telling("step.started").events))
    return await state.load(ACME, run.id)


async def parked(state: RunStatePort, *steps: int) -> Run:
    """A run that waits for an operator: step 1 has a result, the outcome of `steps` is unknown."""
    made = await state.create(ACME, new_run(deadline=TEN_MINUTES))
    await state.renew(NODE, ANN, LEASE)
    run = await state.claim(ACME, made.run.id, ANN)
    facts = (intent(1), result(1), *(fact for n in steps for fact in (intent(n), unknown(n))))
    await state.append(ACME, run.id, run.epoch, Change(steps=facts, status="needs_operator"))
    return await state.load(ACME, run.id)


async def planned_again(state: RunStatePort) -> Run:
    """A run in the hands of a worker whose step 2 an operator wants repeated."""
    run = await parked(state, 2)
    await state.resolve(ACME, run.id, 2, RETRY, resolve_key())
    await state.renew(NODE, ANN, LEASE)
    return await state.claim(ACME, run.id, ANN)


async def statuses(state: RunStatePort, run_id: RunId) -> list[tuple[int, str]]:
    return [(step.n, step.status) for step in await state.steps(ACME, run_id)]


async def together(*calls: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async with anyio.create_task_group() as group:
        for call in calls:
            group.start_soon(call)


@pytest.mark.anyio
class RunStateForks(Contract):
    @clause("RUN-18")
    async def test_a_fork_is_a_new_run_like_the_one_it_comes_from(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        new = replace(new_run(deadline=TEN_MINUTES), tool_allowlist=("calculator",), session_id="s-1")
        source = (await state.create(ACME, new)).run
        await harness.advance(LEASE)

        forked = await state.fork(ACME_BEN, source.id, 0, fork_key())

        run = forked.run
        assert forked.created
        assert run.id != source.id
        assert (run.status, run.requester, run.forked_from) == ("queued", ACME_BEN, Origin(run_id=source.id, step=0))
        assert (run.agent_id, run.agent_version, run.agent_digest) == (
            new.agent_id,
            new.agent_version,
            new.agent_digest,
        )
        assert (run.input, run.context) == (new.input, new.context)
        assert (run.tool_allowlist, run.session_id) == (new.tool_allowlist, new.session_id)
        assert (run.epoch, run.last_sequence, run.recoveries) == (0, 1, 0)
        assert run.deadline_at == run.created_at + TEN_MINUTES
        assert await state.load(ACME, run.id) == run

    @clause("RUN-18")
    async def test_a_run_without_a_deadline_has_forks_without_one(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await create(state)

        assert (await state.fork(ACME, source.id, 0, fork_key())).run.deadline_at is None

    @clause("RUN-18")
    async def test_a_forks_first_event_names_where_it_comes_from(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)

        run = (await state.fork(ACME, source.id, 2, fork_key())).run

        assert list(await harness.event_types(ACME, run.id)) == [(1, "run.created")]
        assert await harness.event_data(ACME, run.id, 1) == {
            "agent_id": source.agent_id,
            "forked_from": {"run_id": source.id, "step": 2},
        }

    @clause("RUN-18")
    async def test_the_run_a_fork_comes_from_stays_as_it_is(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        journal = await state.steps(ACME, source.id)

        fork = (await state.fork(ACME, source.id, 2, fork_key())).run
        await state.append(ACME, source.id, source.epoch, Change(steps=(result(3),)))

        assert (await state.load(ACME, source.id)).last_sequence == source.last_sequence
        assert (await state.steps(ACME, source.id))[:2] == journal[:2]
        assert await statuses(state, fork.id) == [(1, "completed"), (2, "failed")]

    @clause("RUN-19")
    async def test_a_fork_takes_over_the_steps_before_it_with_their_results(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        originals = await state.steps(ACME, source.id)

        run = (await state.fork(ACME, source.id, 2, fork_key())).run

        expected = tuple(replace(step, epoch=0, usage=Usage()) for step in originals[:2])
        assert await state.steps(ACME, run.id) == expected
        assert (await state.load(ACME, run.id)).usage == Usage()
        assert (await state.load(ACME, source.id)).usage == USAGE

    @clause("RUN-19")
    async def test_a_fork_goes_on_with_the_next_step(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        run = (await state.fork(ACME, source.id, 2, fork_key())).run
        held = await state.claim(ACME, run.id, ANN)

        with pytest.raises(Conflict):
            await state.append(ACME, run.id, held.epoch, Change(steps=(intent(2),)))
        await state.append(ACME, run.id, held.epoch, Change(steps=(intent(3), result(3))))

        assert await statuses(state, run.id) == [(1, "completed"), (2, "failed"), (3, "completed")]

    @clause("RUN-19")
    async def test_a_fork_can_be_forked(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        first = (await state.fork(ACME, source.id, 2, fork_key())).run

        second = (await state.fork(ACME, first.id, 1, fork_key())).run

        assert second.forked_from == Origin(run_id=first.id, step=1)
        assert await statuses(state, second.id) == [(1, "completed")]

    @clause("RUN-18", "RUN-19")
    async def test_a_fork_is_there_for_a_port_opened_anew(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        key = fork_key()
        run = (await state.fork(ACME, source.id, 2, key)).run
        journal = await state.steps(ACME, run.id)

        reopened = await harness.reopen()

        assert (await reopened.load(ACME, run.id), await reopened.steps(ACME, run.id)) == (run, journal)
        assert (await reopened.fork(ACME, source.id, 2, key)).created is False

    @clause("RUN-20")
    @pytest.mark.parametrize("at", [3, 4, 2**40], ids=["unfinished", "beyond the end", "far beyond"])
    async def test_a_step_without_a_result_can_not_be_taken_over(self, harness: RunStateHarness, at: int) -> None:
        state = await harness.open()
        source = await worked(state)

        with pytest.raises(Conflict):
            await state.fork(ACME, source.id, at, fork_key())

        assert await count_runs(state) == 1

    @clause("RUN-20")
    async def test_a_step_of_unknown_outcome_can_not_be_taken_over(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2)

        with pytest.raises(Conflict):
            await state.fork(ACME, source.id, 2, fork_key())

        assert (await state.fork(ACME, source.id, 1, fork_key())).created

    @clause("RUN-20")
    async def test_a_journal_with_a_hole_can_not_be_taken_over_beyond_it(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await claimed(state)
        await state.append(ACME, source.id, source.epoch, Change(steps=(intent(1), result(1), intent(3), result(3))))

        for at in (2, 3):
            with pytest.raises(Conflict):
                await state.fork(ACME, source.id, at, fork_key())

        assert await count_runs(state) == 1

    @clause("RUN-20")
    async def test_a_fork_can_not_begin_below_the_beginning(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)

        with pytest.raises(InvalidArgument):
            await state.fork(ACME, source.id, -1, fork_key())

        assert await count_runs(state) == 1

    @clause("RUN-20")
    async def test_a_refused_fork_does_not_burn_its_key(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        with pytest.raises(Conflict):
            await state.fork(ACME, source.id, 3, fork_key("key-1"))

        await state.append(ACME, source.id, source.epoch, Change(steps=(result(3),)))

        assert (await state.fork(ACME, source.id, 3, fork_key("key-1"))).created

    @clause("RUN-21")
    async def test_forking_again_with_the_same_key_gives_the_first_fork(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        first = await state.fork(ACME, source.id, 1, fork_key("key-1"))

        again = await state.fork(ACME, source.id, 1, fork_key("key-1"))

        assert (again.run, again.created) == (first.run, False)
        assert await state.recall(ACME, fork_key("key-1")) == first.run
        assert await count_runs(state) == 2

    @clause("RUN-21")
    async def test_racing_forks_with_one_key_make_one_run(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        ids: set[RunId] = set()

        async def attempt() -> None:
            ids.add((await state.fork(ACME, source.id, 2, fork_key("key-1"))).run.id)

        await together(*[attempt] * 10)

        assert len(ids) == 1
        assert await count_runs(state) == 2

    @clause("RUN-21")
    async def test_a_key_reused_for_another_fork_conflicts(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await worked(state)
        await state.fork(ACME, source.id, 1, fork_key("key-1"))

        with pytest.raises(Conflict) as refusal:
            await state.fork(ACME, source.id, 2, fork_key("key-1", fingerprint="sha256:other"))

        assert refusal.value.code == "idempotency_key_reused"
        assert await count_runs(state) == 2


@pytest.mark.anyio
class RunStateDecisions(Contract):
    @clause("RUN-22")
    @pytest.mark.parametrize(
        ("resolution", "status", "output", "error"),
        [
            pytest.param(DONE, "completed", {"sent": True}, None, id="done"),
            pytest.param(FAIL, "failed", None, Fault(code="tool_failed", message="it never arrived"), id="fail"),
            pytest.param(RETRY, "planned", None, None, id="retry"),
        ],
    )
    async def test_a_decision_is_recorded_and_the_run_is_queued_again(
        self, harness: RunStateHarness, resolution: Resolution, status: str, output: object, error: Fault | None
    ) -> None:
        state = await harness.open()
        source = await parked(state, 2)

        resolved = await state.resolve(ACME, source.id, 2, resolution, resolve_key())

        step = (await state.steps(ACME, source.id))[1]
        assert resolved.resolved
        assert resolved.run == await state.load(ACME, source.id)
        assert (resolved.run.status, resolved.run.epoch) == ("queued", source.epoch)
        assert (step.status, step.output, step.error) == (status, output, error)
        assert (step.finished_at is None) == (resolution == RETRY)

    @clause("RUN-29")
    @pytest.mark.parametrize("resolution", [DONE, FAIL, RETRY], ids=lambda resolution: resolution.decision)
    async def test_a_decided_step_of_a_cancelled_run_keeps_its_decision(
        self, harness: RunStateHarness, resolution: Resolution
    ) -> None:
        state = await harness.open()
        source = await parked(state, 2)
        await state.resolve(ACME, source.id, 2, resolution, resolve_key())
        before = await state.steps(ACME, source.id)

        cancelled = await state.cancel(ACME, source.id, reason="not needed")

        assert cancelled.status == "cancelled"
        assert await state.steps(ACME, source.id) == before
        assert [kind for _, kind in await harness.event_types(ACME, source.id)][2:] == [
            "step.resolved",
            "run.cancelled",
        ]

    @clause("RUN-22")
    async def test_a_decision_is_told(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2, 3)

        await state.resolve(ACME, source.id, 2, DONE, resolve_key())
        last = await state.resolve(ACME, source.id, 3, FAIL, resolve_key())

        told = list(await harness.event_types(ACME, source.id))
        assert told[-2:] == [(3, "step.resolved"), (4, "step.resolved")]
        assert last.run.last_sequence == 4
        assert await harness.event_data(ACME, source.id, 3) == {
            "step": 2, "decision": "done", "output": {"sent": True}
        }  # fmt: skip
        assert await harness.event_data(ACME, source.id, 4) == {
            "step": 3,
            "decision": "fail",
            "error": {"code": "tool_failed", "message": "it never arrived"},
        }

    @clause("RUN-22")
    async def test_a_run_waits_until_the_last_unknown_step_is_decided(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2, 3)

        first = await state.resolve(ACME, source.id, 3, DONE, resolve_key())
        second = await state.resolve(ACME, source.id, 2, RETRY, resolve_key())

        assert (first.run.status, second.run.status) == ("needs_operator", "queued")
        assert await statuses(state, source.id) == [(1, "completed"), (2, "planned"), (3, "completed")]

    @clause("RUN-22")
    async def test_operators_who_decide_at_the_same_moment_leave_no_run_behind(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        for _ in range(5):
            source = await parked(state, 2, 3, 4, 5)

            await together(
                *(partial(state.resolve, ACME, source.id, n, DONE, resolve_key()) for n in (2, 3, 4, 5)),
            )

            run = await state.load(ACME, source.id)
            assert (run.status, run.last_sequence) == ("queued", source.last_sequence + 4)

    @clause("RUN-22")
    async def test_a_run_that_was_decided_about_can_be_claimed_at_once(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2)
        await state.resolve(ACME, source.id, 2, DONE, resolve_key())
        await state.renew(NODE, BOB, LEASE)

        held = await state.claim(ACME, source.id, BOB)

        assert (held.epoch, held.recoveries) == (source.epoch + 1, source.recoveries)
        assert await state.orphans(NODE, queued_for=timedelta(0), limit=10) == ()

    @clause("RUN-22")
    async def test_the_time_a_run_waited_for_an_operator_is_not_counted(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2, 3)
        await harness.advance(TEN_MINUTES)
        await state.resolve(ACME, source.id, 2, DONE, resolve_key())
        await harness.advance(TEN_MINUTES)

        resolved = await state.resolve(ACME, source.id, 3, DONE, resolve_key())

        assert source.deadline_at is not None
        assert resolved.run.deadline_at is not None
        moved = resolved.run.deadline_at - source.deadline_at
        assert 2 * TEN_MINUTES <= moved < 2 * TEN_MINUTES + SOON

    @clause("RUN-18", "RUN-22")
    async def test_a_fork_does_not_inherit_the_time_spent_waiting(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2)
        await harness.advance(TEN_MINUTES)
        await state.resolve(ACME, source.id, 2, DONE, resolve_key())

        fork = (await state.fork(ACME, source.id, 2, fork_key())).run

        assert fork.deadline_at == fork.created_at + TEN_MINUTES

    @clause("RUN-22")
    async def test_a_decision_is_there_for_a_port_opened_anew(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2)
        run = (await state.resolve(ACME, source.id, 2, DONE, resolve_key())).run

        reopened = await harness.reopen()

        assert await reopened.load(ACME, source.id) == run
        assert await statuses(reopened, source.id) == [(1, "completed"), (2, "completed")]

    @clause("RUN-23")
    async def test_a_planned_step_takes_one_more_intent_and_one_result(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await planned_again(state)
        once_more = Change(
            steps=(replace(intent(2), again=True, name="other", input=None, input_digest="sha256:other"),)
        )

        await state.append(ACME, run.id, run.epoch, once_more)
        begun = (await state.steps(ACME, run.id))[1]
        with pytest.raises(Conflict):
            await state.append(ACME, run.id, run.epoch, once_more)
        await state.append(ACME, run.id, run.epoch, Change(steps=(result(2),)))
        with pytest.raises(Conflict):
            await state.append(ACME, run.id, run.epoch, once_more)

        ended = (await state.steps(ACME, run.id))[1]
        assert (begun.status, begun.epoch, begun.finished_at) == ("started", run.epoch, None)
        assert begun.started_at >= (run.started_at or begun.started_at)
        assert (ended.status, ended.output) == ("completed", 42)
        assert (ended.name, ended.input, ended.input_digest) == (
            intent(2).name,
            intent(2).input,
            intent(2).input_digest,
        )

    @clause("RUN-23")
    async def test_a_planned_step_takes_intent_and_result_in_one_append(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await planned_again(state)

        await state.append(ACME, run.id, run.epoch, Change(steps=(replace(intent(2), again=True), failed(2))))

        assert await statuses(state, run.id) == [(1, "completed"), (2, "failed")]

    @clause("RUN-23")
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(Change(steps=(intent(2),)), id="an unmarked intent"),
            pytest.param(Change(steps=(result(2),)), id="a result without intent"),
            pytest.param(Change(steps=(replace(intent(1), again=True),)), id="for a step with a result"),
            pytest.param(Change(steps=(replace(intent(7), again=True),)), id="for a step that is not there"),
            pytest.param(Change(steps=(intent(3), replace(intent(3), again=True))), id="for a step begun just now"),
        ],
    )
    async def test_only_a_planned_step_is_begun_again(self, harness: RunStateHarness, change: Change) -> None:
        state = await harness.open()
        run = await planned_again(state)
        before = (await state.load(ACME, run.id), await state.steps(ACME, run.id))

        with pytest.raises(Conflict) as refusal:
            await state.append(ACME, run.id, run.epoch, change)

        assert refusal.value.code == "conflict"
        assert (await state.load(ACME, run.id), await state.steps(ACME, run.id)) == before

    @clause("RUN-23")
    async def test_a_planned_step_can_not_be_taken_over_by_a_fork(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await planned_again(state)

        with pytest.raises(Conflict):
            await state.fork(ACME, run.id, 2, fork_key())

    @clause("RUN-24")
    @pytest.mark.parametrize("n", [1, 3, 0, -(2**40), 2**40])
    async def test_only_a_step_of_unknown_outcome_can_be_decided(self, harness: RunStateHarness, n: int) -> None:
        state = await harness.open()
        source = await parked(state, 2)
        before = (source, await state.steps(ACME, source.id))

        with pytest.raises(Conflict):
            await state.resolve(ACME, source.id, n, DONE, resolve_key())

        assert (await state.load(ACME, source.id), await state.steps(ACME, source.id)) == before

    @clause("RUN-24")
    async def test_only_a_run_that_waits_for_an_operator_is_decided_about(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        queued = await create(state)
        running = await claimed(state)
        await state.append(ACME, running.id, running.epoch, Change(steps=(intent(1), unknown(1))))
        ended = await claimed(state)
        await state.append(ACME, ended.id, ended.epoch, replace(SUCCEEDED, steps=(intent(1), unknown(1))))
        cancelled = await state.cancel(ACME, (await parked(state, 2)).id, reason="enough")

        for run, n in ((queued, 1), (running, 1), (ended, 1), (cancelled, 2)):
            before = await state.load(ACME, run.id)
            with pytest.raises(Conflict):
                await state.resolve(ACME, run.id, n, DONE, resolve_key())
            assert await state.load(ACME, run.id) == before

    @clause("RUN-24")
    async def test_a_step_is_decided_about_once(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2, 3)
        outcomes: list[Resolved | str] = []

        async def attempt() -> None:
            try:
                outcomes.append(await state.resolve(ACME, source.id, 2, DONE, resolve_key()))
            except AgentOSError as error:
                outcomes.append(error.code)

        await together(*[attempt] * 5)

        assert outcomes.count("conflict") == 4
        assert (await state.load(ACME, source.id)).last_sequence == source.last_sequence + 1

    @clause("RUN-24")
    async def test_a_repeated_decision_returns_the_run_as_it_stands(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2)
        await state.resolve(ACME, source.id, 2, RETRY, resolve_key("key-1"))
        await state.renew(NODE, ANN, LEASE)
        held = await state.claim(ACME, source.id, ANN)
        parking = Change(steps=(replace(intent(2), again=True), unknown(2)), status="needs_operator")
        await state.append(ACME, source.id, held.epoch, parking)
        again = await state.load(ACME, source.id)

        repeated = await state.resolve(ACME, source.id, 2, RETRY, resolve_key("key-1"))

        assert repeated == Resolved(run=again, resolved=False)
        assert await state.recall(ACME, resolve_key("key-1")) == again
        assert await state.load(ACME, source.id) == again

    @clause("RUN-24")
    async def test_a_key_reused_for_another_decision_conflicts(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2, 3)
        await state.resolve(ACME, source.id, 2, DONE, resolve_key("key-1"))
        before = await state.load(ACME, source.id)

        with pytest.raises(Conflict) as refusal:
            await state.resolve(ACME, source.id, 3, DONE, resolve_key("key-1", fingerprint="sha256:other"))

        assert refusal.value.code == "idempotency_key_reused"
        assert await state.load(ACME, source.id) == before

    @clause("RUN-24")
    async def test_a_refused_decision_does_not_burn_its_key(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await parked(state, 2)
        with pytest.raises(Conflict):
            await state.resolve(ACME, source.id, 3, DONE, resolve_key("key-1"))

        assert (await state.resolve(ACME, source.id, 2, DONE, resolve_key("key-1"))).resolved
