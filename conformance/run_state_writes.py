"""RunState: effects that are committed with the results of their steps."""

import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, intent, result, telling
from conformance.harness import RunStateHarness
from conformance.people import ACME, FOREIGNERS, NODE, Foreigner
from conformance.run_state_claims import BOB, LEASE, claimed
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, Unsupported
from ports.memory import MAX_KEY_CHARS, MemoryPort, MemoryWrite
from ports.messages import Json
from ports.run_state import Change, RunStatePort

NOTE = MemoryWrite(key="note", value="the walrus", metadata={"by": "ann"})
REMEMBERING = Change(steps=(intent(1), result(1)), writes=(NOTE,))


def transactional(state: RunStatePort) -> RunStatePort:
    if not state.capabilities.transactional:
        pytest.skip("not declared: transactional")
    return state


async def value_of(memory: MemoryPort, key: str = "note", auth: AuthContext = ACME) -> Json:
    item = await memory.get(auth, key)
    return None if item is None else item.value


@pytest.mark.anyio
class RunStateWrites(Contract):
    @clause("RUN-28")
    async def test_the_writes_of_an_append_are_true_with_it(self, harness: RunStateHarness) -> None:
        state = transactional(await harness.open())
        memory = await harness.memory()
        run = await claimed(state)

        await state.append(ACME, run.id, run.epoch, REMEMBERING)

        [step] = await state.steps(ACME, run.id)
        item = await memory.get(ACME, "note")
        assert step.status == "completed"
        assert item is not None
        assert (item.value, item.metadata) == ("the walrus", {"by": "ann"})
        assert [match.item.key for match in await memory.search(ACME, "WALRUS")] == ["note"]

    @clause("RUN-28")
    async def test_writes_are_put_one_after_the_other(self, harness: RunStateHarness) -> None:
        state = transactional(await harness.open())
        memory = await harness.memory()
        run = await claimed(state)
        await memory.put(ACME, "note", "the penguin")
        writes = (NOTE, MemoryWrite(key="other", value=[1, None]), replace(NOTE, value="the otter"))

        await state.append(ACME, run.id, run.epoch, Change(steps=(intent(1), result(1)), writes=writes))

        assert await value_of(memory) == "the otter"
        assert await value_of(memory, "other") == [1, None]
        assert await memory.search(ACME, "penguin walrus") == ()

    @clause("RUN-28")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_writes_are_those_of_the_runs_tenant_and_namespace(
        self, harness: RunStateHarness, foreigner: Foreigner
    ) -> None:
        state = transactional(await harness.open())
        memory = await harness.memory()
        run = await claimed(state)

        await state.append(ACME, run.id, run.epoch, REMEMBERING)

        assert await value_of(memory, auth=foreigner.auth) is None

    @clause("RUN-28")
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(replace(REMEMBERING, steps=(intent(1), result(1), result(1))), id="second result"),
            pytest.param(replace(REMEMBERING, steps=(result(7),)), id="result without intent"),
            pytest.param(replace(REMEMBERING, status="succeeded"), id="no terminal event"),
        ],
    )
    async def test_the_writes_of_a_refused_append_are_not_made(self, harness: RunStateHarness, change: Change) -> None:
        state = transactional(await harness.open())
        memory = await harness.memory()
        run = await claimed(state)

        with pytest.raises((Conflict, InvalidArgument)):
            await state.append(ACME, run.id, run.epoch, change)

        assert await value_of(memory) is None
        assert await state.steps(ACME, run.id) == ()

    @clause("RUN-28")
    async def test_a_worker_that_was_taken_over_makes_no_writes(self, harness: RunStateHarness) -> None:
        state = transactional(await harness.open())
        memory = await harness.memory()
        stale = await claimed(state)
        await harness.advance(2 * LEASE)
        await state.renew(NODE, BOB, LEASE)
        taken = await state.claim(ACME, stale.id, BOB)

        with pytest.raises(Conflict) as refusal:
            await state.append(ACME, stale.id, stale.epoch, REMEMBERING)
        made_by_the_stale = await value_of(memory)
        await state.append(ACME, taken.id, taken.epoch, SUCCEEDED)
        with pytest.raises(Conflict):
            await state.append(ACME, taken.id, taken.epoch, REMEMBERING)

        assert refusal.value.code == "fenced"
        assert made_by_the_stale is None
        assert await value_of(memory) is None

    @clause("RUN-28")
    @pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_CHARS + 1), "a\x00b"], ids=["empty", "long", "nul"])
    async def test_a_write_that_memory_would_not_take_refuses_the_whole_append(
        self, harness: RunStateHarness, key: str
    ) -> None:
        state = transactional(await harness.open())
        memory = await harness.memory()
        run = await claimed(state)
        too_large = MemoryWrite(key="k", value="x" * memory.capabilities.max_value_bytes)

        for refused in (MemoryWrite(key=key, value="text"), too_large):
            change = replace(REMEMBERING, writes=(NOTE, refused), events=telling("step.completed").events)
            with pytest.raises(InvalidArgument):
                await state.append(ACME, run.id, run.epoch, change)

        assert await value_of(memory) is None
        assert await state.steps(ACME, run.id) == ()
        assert await state.load(ACME, run.id) == run

    @clause("RUN-28")
    async def test_a_store_that_makes_no_writes_says_so(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        if state.capabilities.transactional:
            pytest.skip("declared: transactional")
        run = await claimed(state)

        with pytest.raises(Unsupported):
            await state.append(ACME, run.id, run.epoch, REMEMBERING)

        assert await state.steps(ACME, run.id) == ()
