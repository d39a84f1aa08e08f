"""RunState: large bodies are what they were, wherever they are read."""

import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import MEGABYTE, idempotency, intent, new_run, result
from conformance.harness import RunStateHarness
from conformance.people import ACME, GLOBEX, NODE
from conformance.run_state_claims import ANN, LEASE, claimed
from ports.messages import Json
from ports.run_state import Change, NewEvent, NewRun, Run, RunFilter

LARGE: dict[str, Json] = {"text": MEGABYTE, "more": [MEGABYTE[:10], None]}


def large_run() -> NewRun:
    return replace(new_run(idempotency("large")), input=MEGABYTE, context=LARGE)


def is_whole(run: Run) -> bool:
    # Compared here: a report that shows two megabytes helps nobody.
    return run.input == MEGABYTE and run.context == LARGE


@pytest.mark.anyio
class RunStateBodies(Contract):
    @clause("RUN-1")
    async def test_a_megabyte_of_input_is_whole_wherever_the_run_is_returned(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        new = large_run()
        await state.renew(NODE, ANN, LEASE)

        created = await state.create(ACME, new)
        repeated = await state.create(ACME, new)
        run_id = created.run.id
        found = {
            "created": created.run,
            "repeated": repeated.run,
            "recalled": await state.recall(ACME, new.idempotency),
            "claimed": await state.claim(ACME, run_id, ANN),
            "loaded": await state.load(ACME, run_id),
            "listed": (await state.list_runs(ACME, RunFilter(), limit=1)).items[0],
            "cancelled": await state.cancel(ACME, run_id, reason="enough"),
        }

        assert [name for name, run in found.items() if run is None or not is_whole(run)] == []

    @clause("RUN-1")
    async def test_equal_large_bodies_of_two_tenants_are_each_their_own(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        mine, theirs = [(await state.create(auth, large_run())).run for auth in (ACME, GLOBEX)]

        assert is_whole(await state.load(ACME, mine.id))
        assert is_whole(await state.load(GLOBEX, theirs.id))

    @clause("RUN-8")
    async def test_a_megabyte_of_a_step_or_an_output_is_read_as_it_was_written(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        steps = (
            replace(intent(1), input={"expression": MEGABYTE}), result(1, MEGABYTE),
            intent(2), result(2, LARGE),
            intent(3),
        )  # fmt: skip

        await state.append(ACME, run.id, run.epoch, Change(steps=steps))
        ended = Change(
            steps=(result(3, MEGABYTE),),
            status="succeeded",
            output=LARGE,
            events=(NewEvent(type="run.completed", data=LARGE),),
        )
        await state.append(ACME, run.id, run.epoch, ended)

        first, second, third = await state.steps(ACME, run.id)
        assert first.input["expression"] == MEGABYTE
        assert [first.output == MEGABYTE, second.output == LARGE, third.output == MEGABYTE] == [True, True, True]
        assert (await state.load(ACME, run.id)).output == LARGE
