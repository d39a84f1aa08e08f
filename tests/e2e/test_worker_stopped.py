"""A worker that was stopped for longer than its lease acts for nobody when it goes on, until it has claimed anew."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.agent import AgentLimits, AgentSpec
from ports.context import AuthContext
from ports.ids import AgentId
from ports.messages import Json
from ports.model import ChatRequest, Message
from ports.run_state import TERMINAL
from ports.tool import ToolCall, ToolPort, ToolResult
from stack_a.lease import LEASE
from tests.faults import witness
from tests.support import counted_tool
from tests.support.inproc_tools import tool
from tests.support.ports import free_ports
from tests.support.real_stacks import AGENT, Provider, real_stacks
from tests.support.scripted_upstream import delta
from tests.support.stack_a import stack_a
from tests.support.worker import calls, ended_in_time, takeover, until

pytestmark = pytest.mark.anyio


async def settled() -> None:
    """Let everybody act who can without time passing."""
    for _ in range(200):
        await anyio.lowlevel.checkpoint()


ONE_BY_ONE = AgentSpec(
    id=AgentId("agt_demo"), model="m", tools=("stop", "go"), limits=AgentLimits(max_parallel_tools=1)
)


class Leaping(ManualClock):
    """Time that may leap while nothing runs: nobody's sleep ends of that, as when a whole process stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.leapt = timedelta(0)

    def monotonic(self) -> float:
        return super().monotonic() + self.leapt.total_seconds()


class Begun:
    """Tools whose calls are noted in the moment in which they are made."""

    def __init__(self, port: ToolPort, note: Callable[[str], None]) -> None:
        self._port = port
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        self._note(call.name)
        return await self._port.invoke(auth, call, timeout=timeout)


class Stopping:
    """A worker whose whole process stands still once, in the middle of the tool `stop`; and who acted, by worker."""

    def __init__(self, clock: Leaping) -> None:
        self._clock = clock
        self.worker: Any = None
        self.acted: list[tuple[str, str]] = []
        self.stopped_as = ""

    def tools(self) -> ToolPort:
        port = InprocTools([tool("stop", self._stop), tool("go", self._go)], self._clock)
        return cast("ToolPort", Begun(port, self._note))

    def _note(self, what: str) -> None:
        if self.stopped_as:
            self.acted.append((what, self.worker.id))

    async def _stop(self, _auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        if not self.stopped_as:
            self.stopped_as = self.worker.id
            self._clock.leapt = LEASE
        return {}

    async def _go(self, _auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        return {}

    def model(self, *turns: Message) -> InprocModel:
        def rule(_auth: AuthContext, request: ChatRequest) -> Message:
            done = sum(message.role == "assistant" for message in request.messages)
            self._note("model")
            return turns[done] if done < len(turns) else Message(role="assistant", content="done")

        return InprocModel(InprocModelConfig(chat_models=("m",)), rule)


@pytest.mark.parametrize(
    "turns", [(calls("stop"), calls("go")), (calls("stop", "go"),)], ids=["the next call", "one that waits its turn"]
)
async def test_what_was_claimed_before_a_worker_was_stopped_is_not_acted_for_after_it(turns: tuple[Message]) -> None:
    clock = Leaping()
    stopping = Stopping(clock)
    async with stack_a(clock=clock) as node:
        await node.api.agent.publish(ACME, ONE_BY_ONE)
        async with node.worker(stopping.model(*turns), stopping.tools()) as worker:
            stopping.worker = worker
            run_id = await node.created()
            await until(lambda: bool(stopping.stopped_as))
            await settled()
            acted_at_once = list(stopping.acted)
            await takeover(clock)
            run = await ended_in_time(node, clock, run_id)

    assert acted_at_once == []
    assert (run.status, run.epoch, run.recoveries) == ("succeeded", 2, 1)
    assert ("go", worker.id) in stopping.acted
    assert stopping.stopped_as not in {by for _, by in stopping.acted}


class AsksThreeTimes(Provider):
    """A provider whose first three answers ask for the tool."""

    def deltas(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        if sum(message["role"] == "tool" for message in body["messages"]) == 3:
            return super().deltas(body)
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": counted_tool.NAME, "arguments": "{}"}}
        return [delta(role="assistant", tool_calls=[call]), delta("tool_calls")]


async def test_a_real_worker_that_was_stopped_for_longer_than_its_lease_calls_no_tool_before_it_has_claimed_anew(
    tmp_path: Path,
) -> None:
    provider, begun = AsksThreeTimes(), tmp_path / "begun"
    provider.let_go.set()
    agent = AgentSpec(id=AGENT.id, model=AGENT.model, tools=(counted_tool.NAME,))
    settings = {"AGENTOS_ADAPTERS": counted_tool.ADAPTERS, counted_tool.BEGUN: str(begun)}
    async with real_stacks(
        tmp_path, free_ports(2), provider=provider, agent=agent, worker_environment=settings
    ) as stacks:
        await witness.install(stacks.database.superuser)
        await stacks.gateway.start()
        await stacks.worker.start()
        run_id = await stacks.created("probe three times")
        with anyio.fail_after(60):
            while not begun.exists():  # noqa: ASYNC110 - another process writes it
                await anyio.sleep(0.02)

        stacks.worker.pause()
        await anyio.sleep(LEASE.total_seconds() + 1)
        asked, went_on = provider.total, time.time()
        stacks.worker.go_on()

        with anyio.fail_after(90):
            while (run := await stacks.run(run_id)).status not in TERMINAL:  # noqa: ASYNC110 - other processes end it
                await anyio.sleep(0.2)
        claims = await witness.ask(stacks.database.superuser, "SELECT epoch, at FROM faults.claims ORDER BY epoch")
        zombies = await witness.ask(stacks.database.superuser, "SELECT * FROM faults.zombies")

    assert (run.status, run.epoch, len(zombies)) == ("succeeded", 2, 0)
    [_, again] = claims
    calls_at = [float(line.split()[0]) for line in begun.read_text().splitlines()]
    later = [at for at in calls_at if at > went_on]
    assert asked == 1
    assert len(later) == 3
    assert again["at"] > datetime.fromtimestamp(went_on, UTC)
    assert datetime.fromtimestamp(min(later), UTC) > again["at"]
