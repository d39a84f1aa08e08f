"""Values that databases stumble over: kept exactly where JSON allows them, refused as the caller's mistake elsewhere."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

import pytest
from msgspec.structs import replace

from adapters.postgres import agent, memory, run_state
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import idempotency, new_run
from conformance.people import ACME, NODE
from ports.adapter import Given
from ports.agent import AgentRegistry
from ports.errors import InvalidArgument, NotFound
from ports.ids import AgentId, RunId, WorkerId
from ports.memory import MemoryPort
from ports.run_state import Change, NewEvent, RunFilter, RunStatePort, StepIntent, StepResult
from tests.support.postgres import borrow, give_back

ODD: Final = {
    "nul": "a\x00b",
    "emoji": "\U0001f600",
    "largest": 2**63 - 1,
    "smallest": -(2**63),
    "tiny": 5e-324,
    "minus zero": -0.0,
    "": [],
    "quotes": "'\"\\$$:name::text",
}
UNSTORABLE: Final = ("a\x00b", "a\ud800b")


class Ports:
    def __init__(self, runs: RunStatePort, agents: AgentRegistry, memory: MemoryPort) -> None:
        self.runs, self.agents, self.memory = runs, agents, memory


@pytest.fixture
async def ports() -> AsyncIterator[Ports]:
    clone = await borrow()
    config, given = PostgresConfig(dsn=clone.app), Given(clock=SystemClock())
    async with AsyncExitStack() as stack:
        runs = await stack.enter_async_context(run_state.SPEC.open(config, given))
        agents = await stack.enter_async_context(agent.SPEC.open(config, given))
        items = await stack.enter_async_context(memory.SPEC.open(config, given))
        yield Ports(runs, agents, items)
    await give_back(clone)


@pytest.mark.anyio
class TestOddValues:
    async def test_json_comes_back_exactly(self, ports: Ports) -> None:
        worker = WorkerId("wrk_odd")
        await ports.runs.renew(NODE, worker, timedelta(hours=1))
        run = (await ports.runs.create(ACME, replace(new_run(), input=ODD, context=ODD))).run
        claimed = await ports.runs.claim(ACME, run.id, worker)
        intent = StepIntent(n=1, kind="tool", name="t", effect="pure", input=ODD, input_digest="d")
        result = StepResult(n=1, status="completed", output=ODD)
        event = NewEvent(type="step.started", data=ODD)

        await ports.runs.append(ACME, run.id, claimed.epoch, Change(steps=(intent,), events=(event,)))
        await ports.runs.append(ACME, run.id, claimed.epoch, Change(steps=(result,)))

        loaded = await ports.runs.load(ACME, run.id)
        [step] = await ports.runs.steps(ACME, run.id)
        for value in (loaded.input, loaded.context, step.input, step.output):
            assert repr(value) == repr(ODD)

    @pytest.mark.parametrize("text", UNSTORABLE, ids=["nul", "surrogate"])
    async def test_a_text_that_can_not_be_stored_is_the_callers_mistake(self, ports: Ports, text: str) -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: ports.runs.create(ACME, new_run(idempotency(text))),
            lambda: ports.runs.create(ACME, replace(new_run(), session_id=text)),
            lambda: ports.runs.list_runs(ACME, RunFilter(agent_id=AgentId(text)), limit=5),
            lambda: ports.agents.get(ACME, AgentId(text)),
            lambda: ports.memory.put(ACME, text, "value"),
            lambda: ports.memory.put(ACME, "k", "value", metadata={"k": text}),
            lambda: ports.memory.get(ACME, text),
        ]

        for call in calls:
            with pytest.raises(InvalidArgument):
                await call()

    @pytest.mark.parametrize("after", [-1, -(2**70), 2**31, 2**70])
    async def test_any_number_may_be_a_steps_cursor(self, ports: Ports, after: int) -> None:
        run = (await ports.runs.create(ACME, new_run())).run

        assert await ports.runs.steps(ACME, run.id, after=after) == ()

    @pytest.mark.parametrize(
        "run_id", ["", "run_", "run_" + "z" * 32, "run_" + "0" * 32, "evt_" + "0" * 32, "x" * 10_000]
    )
    async def test_any_text_may_be_a_runs_id(self, ports: Ports, run_id: str) -> None:
        with pytest.raises(NotFound):
            await ports.runs.load(ACME, RunId(run_id))

    async def test_a_configuration_does_not_show_its_password(self) -> None:
        assert "secret" not in repr(PostgresConfig(dsn="postgresql://ao_app:secret@127.0.0.1/agentos"))
