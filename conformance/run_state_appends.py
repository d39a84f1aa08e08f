"""RunState: what an append writes, all or nothing, and how a run ends."""

from functools import partial

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, idempotency, intent, result, telling
from conformance.harness import RunStateHarness
from conformance.people import ACME, NODE
from conformance.run_state_claims import ANN, BOB, LEASE, claimed, create
from ports.errors import Conflict, InvalidArgument
from ports.messages import Fault, Usage
from ports.run_state import Appended, Change, NewEvent, RunStatus, StepResult


@pytest.mark.anyio
class RunStateAppends(Contract):
    @clause("RUN-8")
    async def test_events_get_the_sequence_numbers_after_the_last_one(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)

        first = await state.append(ACME, run.id, run.epoch, telling("step.started", "tool.requested"))
        second = await state.append(ACME, run.id, run.epoch, telling("tool.completed"))

        assert (first, second) == (
            Appended(last_sequence=4, cancel_requested=False),
            Appended(last_sequence=5, cancel_requested=False),
        )
        assert list(await harness.event_types(ACME, run.id)) == [
            (1, "run.created"),
            (2, "run.started"),
            (3, "step.started"),
            (4, "tool.requested"),
            (5, "tool.completed"),
        ]

    @clause("RUN-8")
    async def test_racing_appends_leave_no_gap(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        last: list[int] = []

        async def attempt() -> None:
            last.append(
                (await state.append(ACME, run.id, run.epoch, telling("model.delta", "model.delta"))).last_sequence
            )

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(attempt)

        assert sorted(last) == list(range(4, 24, 2))
        assert [sequence for sequence, _ in await harness.event_types(ACME, run.id)] == list(range(1, 23))

    @clause("RUN-8")
    async def test_an_append_becomes_true_as_a_whole(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        usage = Usage(prompt_tokens=10, completion_tokens=5, cost_nanousd=7)
        answer = replace(result(1), usage=usage)

        await state.append(ACME, run.id, run.epoch, Change(steps=(intent(1), answer, intent(2))))
        await state.append(ACME, run.id, run.epoch, Change(steps=(replace(result(2), usage=usage),)))

        steps = await state.steps(ACME, run.id)
        assert [(step.n, step.status, step.output, step.epoch) for step in steps] == [
            (1, "completed", 42, 1),
            (2, "completed", 42, 1),
        ]
        assert [step.input for step in steps] == [intent(1).input, intent(2).input]
        assert (await state.load(ACME, run.id)).usage == usage.plus(usage)

    @clause("RUN-8")
    async def test_a_failed_step_keeps_its_fault(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        fault = Fault(code="tool_timeout", message="calculator took longer than 30 s", retryable=True)

        await state.append(
            ACME, run.id, run.epoch, Change(steps=(intent(1), StepResult(n=1, status="failed", error=fault)))
        )

        [step] = await state.steps(ACME, run.id)
        assert (step.status, step.error) == ("failed", fault)

    @clause("RUN-8")
    async def test_the_journal_is_read_in_order_from_any_step(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, Change(steps=tuple(intent(n) for n in (1, 2, 3, 4))))

        after = await state.steps(ACME, run.id, after=1, limit=2)

        assert [step.n for step in after] == [2, 3]

    @clause("RUN-8")
    async def test_what_was_appended_is_there_for_a_port_opened_anew(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, Change(steps=(intent(1),), events=telling("step.started").events))
        before = (await state.load(ACME, run.id), await state.steps(ACME, run.id))

        reopened = await harness.reopen()

        assert (await reopened.load(ACME, run.id), await reopened.steps(ACME, run.id)) == before

    @clause("RUN-9")
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(Change(steps=(intent(1),)), id="second intent"),
            pytest.param(Change(steps=(result(1, output="other"),)), id="second result"),
            pytest.param(Change(steps=(intent(3), intent(3))), id="two intents at once"),
            pytest.param(Change(steps=(result(2), result(2))), id="two results at once"),
            pytest.param(Change(steps=(result(9),)), id="result without intent"),
        ],
    )
    async def test_a_step_is_recorded_at_most_once_and_the_whole_append_is_refused(
        self, harness: RunStateHarness, change: Change
    ) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, Change(steps=(intent(1), result(1), intent(2))))
        before = (await state.load(ACME, run.id), await state.steps(ACME, run.id))
        mixed = replace(change, steps=(intent(7), *change.steps), events=telling("step.completed").events)

        with pytest.raises(Conflict) as refusal:
            await state.append(ACME, run.id, run.epoch, mixed)

        assert refusal.value.code == "conflict"
        assert (await state.load(ACME, run.id), await state.steps(ACME, run.id)) == before

    @clause("RUN-10")
    async def test_a_run_ends_with_its_output_and_its_terminal_event_last(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)

        await state.append(ACME, run.id, run.epoch, SUCCEEDED)

        ended = await state.load(ACME, run.id)
        assert (ended.status, ended.output, ended.error) == ("succeeded", "42", None)
        assert ended.finished_at is not None
        assert list(await harness.event_types(ACME, run.id))[-1] == (3, "run.completed")

    @clause("RUN-10")
    async def test_a_failed_run_keeps_its_fault(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        fault = Fault(code="max_steps_exceeded", message="50 steps and no answer")

        await state.append(
            ACME, run.id, run.epoch, Change(status="failed", error=fault, events=(NewEvent(type="run.failed"),))
        )

        ended = await state.load(ACME, run.id)
        assert (ended.status, ended.error, ended.output) == ("failed", fault, None)

    @clause("RUN-10")
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(Change(status="succeeded"), id="no terminal event"),
            pytest.param(telling("run.completed"), id="no terminal status"),
            pytest.param(replace(SUCCEEDED, status="failed"), id="the event of another status"),
            pytest.param(replace(SUCCEEDED, events=SUCCEEDED.events * 2), id="two terminal events"),
            pytest.param(replace(SUCCEEDED, events=(*SUCCEEDED.events, NewEvent(type="model.delta"))), id="not last"),
        ],
    )
    async def test_an_ending_that_is_not_one_is_refused(self, harness: RunStateHarness, change: Change) -> None:
        state = await harness.open()
        run = await claimed(state)

        with pytest.raises(InvalidArgument):
            await state.append(ACME, run.id, run.epoch, change)

        assert await state.load(ACME, run.id) == run

    @clause("RUN-10")
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(telling("model.delta"), id="event"),
            pytest.param(Change(steps=(intent(1),)), id="step"),
            pytest.param(SUCCEEDED, id="second ending"),
            pytest.param(Change(), id="nothing"),
        ],
    )
    async def test_nothing_is_appended_after_the_end(self, harness: RunStateHarness, change: Change) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, SUCCEEDED)
        ended = await state.load(ACME, run.id)

        with pytest.raises(Conflict):
            await state.append(ACME, run.id, run.epoch, change)

        assert await state.load(ACME, run.id) == ended
        assert await state.steps(ACME, run.id) == ()


@pytest.mark.anyio
class RunStateCancellation(Contract):
    @clause("RUN-11")
    async def test_a_run_nobody_holds_is_cancelled_at_once(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await create(state)

        cancelled = await state.cancel(ACME, run.id, reason="not needed")

        assert (cancelled.status, cancelled.last_sequence) == ("cancelled", 2)
        assert cancelled.finished_at is not None
        assert await state.load(ACME, run.id) == cancelled
        assert list(await harness.event_types(ACME, run.id)) == [(1, "run.created"), (2, "run.cancelled")]

    @clause("RUN-11")
    async def test_cancelling_a_held_run_is_reported_to_its_worker(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        other = await claimed(state)

        asked = await state.cancel(ACME, run.id, reason="not needed")

        assert asked.status == "running"
        assert asked.cancel_requested_at is not None
        assert (await state.append(ACME, run.id, run.epoch, telling("model.delta"))).cancel_requested is True
        assert (await state.append(ACME, other.id, other.epoch, telling("model.delta"))).cancel_requested is False
        assert (await state.renew(NODE, ANN, LEASE)).cancel_requested == frozenset({run.id})

    @clause("RUN-11")
    async def test_a_worker_that_takes_over_learns_of_the_cancellation(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        asked = await state.cancel(ACME, run.id, reason="not needed")

        await harness.advance(2 * LEASE)
        await state.renew(NODE, BOB, LEASE)
        taken = await state.claim(ACME, run.id, BOB)

        assert taken.cancel_requested_at == asked.cancel_requested_at

    @clause("RUN-11")
    async def test_cancelling_a_held_run_again_changes_nothing(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        asked = await state.cancel(ACME, run.id, reason="first")
        await harness.advance(LEASE / 2)

        again = await state.cancel(ACME, run.id, reason="second")

        assert again == asked
        assert await state.load(ACME, run.id) == asked

    @clause("RUN-11")
    async def test_a_key_that_cancelled_one_run_does_not_cancel_another(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run, other = await create(state), await create(state)
        first, second = idempotency("k", fingerprint="one"), idempotency("k", fingerprint="other")
        await state.cancel(ACME, run.id, reason="x", idempotency=first)
        again = await state.cancel(ACME, run.id, reason="x", idempotency=first)

        with pytest.raises(Conflict) as refusal:
            await state.cancel(ACME, other.id, reason="x", idempotency=second)

        assert again.status == "cancelled"
        assert refusal.value.code == "idempotency_key_reused"
        assert (await state.load(ACME, other.id)).status == "queued"

    @clause("RUN-11")
    async def test_cancelling_a_terminal_run_returns_it_as_it_is(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        succeeded = await claimed(state)
        await state.append(ACME, succeeded.id, succeeded.epoch, SUCCEEDED)
        cancelled = await state.cancel(ACME, (await create(state)).id, reason="first")

        for ended in (await state.load(ACME, succeeded.id), cancelled):
            assert await state.cancel(ACME, ended.id, reason="second") == ended
            assert await state.load(ACME, ended.id) == ended

    @clause("RUN-29")
    @pytest.mark.parametrize("status", ["queued", "waiting", "needs_operator"])
    async def test_a_run_cancelled_while_nobody_holds_it_leaves_no_step_begun(
        self, harness: RunStateHarness, status: RunStatus
    ) -> None:
        state = await harness.open()
        run = await claimed(state)
        model = replace(intent(3), kind="model", name="m")
        begun = Change(steps=(intent(1), result(1), intent(2), model, intent(4)), status=status)
        begun = replace(begun, waits_for="child") if status == "waiting" else begun
        await state.append(ACME, run.id, run.epoch, begun)
        [first, *_] = await state.steps(ACME, run.id)

        cancelled = await state.cancel(ACME, run.id, reason="not needed")

        steps = await state.steps(ACME, run.id)
        assert steps[0] == first
        assert [(step.n, step.status) for step in steps[1:]] == [(2, "unknown"), (3, "unknown"), (4, "unknown")]
        assert all(step.error is not None and step.error.code == "outcome_unknown" for step in steps[1:])
        assert {step.finished_at for step in steps[1:]} == {cancelled.finished_at}
        assert list(await harness.event_types(ACME, run.id))[2:] == [
            (3, "tool.completed"), (4, "step.completed"), (5, "model.completed"), (6, "step.completed"),
            (7, "tool.completed"), (8, "step.completed"), (9, "run.cancelled"),
        ]  # fmt: skip
        told = [await harness.event_data(ACME, run.id, sequence) for sequence in (3, 4, 5, 6)]
        assert [one["step"] for one in told] == [2, 2, 3, 3]
        assert (told[0]["tool"], told[0]["status"], told[0]["error"]["code"]) == (
            "calculator", "unknown", "outcome_unknown",
        )  # fmt: skip
        assert (cancelled.last_sequence, cancelled.usage) == (9, Usage())

    @clause("RUN-29")
    async def test_cancelling_a_held_run_leaves_its_steps_to_its_worker(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, Change(steps=(intent(1),)))
        before = await state.steps(ACME, run.id)

        asked = await state.cancel(ACME, run.id, reason="not needed")

        assert await state.steps(ACME, run.id) == before
        assert asked.last_sequence == run.last_sequence

    @clause("RUN-10", "RUN-11")
    async def test_cancel_racing_completion_leaves_one_end(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        for _ in range(10):
            run = await claimed(state)
            async with anyio.create_task_group() as group:
                group.start_soon(state.append, ACME, run.id, run.epoch, SUCCEEDED)
                group.start_soon(partial(state.cancel, reason="race"), ACME, run.id)

            assert list(await harness.event_types(ACME, run.id))[2:] == [(3, "run.completed")]
            assert (await state.load(ACME, run.id)).status == "succeeded"
