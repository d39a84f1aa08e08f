"""A tool that keeps the worker's whole event loop busy for longer than a lease lasts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from adapters.inproc.model import scripted
from adapters.inproc.tool import InprocTools
from conformance.people import ACME, NODE
from ports.agent import AgentSpec
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import RunId
from ports.messages import Json
from ports.run_state import Change
from stack_a.lease import LEASE, kept_apart
from stack_a.worker import Worker
from tests.support import busy_tools
from tests.support.hasty_clock import HastyClock
from tests.support.inproc_tools import tool
from tests.support.ports import free_ports
from tests.support.real_stacks import AGENT, Provider, real_stacks
from tests.support.scripted_upstream import delta
from tests.support.stack_a import stack_a
from tests.support.worker import calls, model

pytestmark = pytest.mark.anyio


class AsksForTheTool(Provider):
    """A provider whose first answer asks for the tool, and whose second is the last."""

    def deltas(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        if body["messages"][-1]["role"] == "tool":
            return super().deltas(body)
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": busy_tools.NAME, "arguments": "{}"}}
        return [delta(role="assistant", tool_calls=[call]), delta("tool_calls")]


async def test_a_real_worker_whose_loop_a_tool_keeps_busy_keeps_its_run(tmp_path: Path) -> None:
    provider, begun = AsksForTheTool(), tmp_path / "begun"
    provider.let_go.set()
    agent = AgentSpec(id=AGENT.id, model=AGENT.model, tools=(busy_tools.NAME,))
    settings = {"AGENTOS_ADAPTERS": busy_tools.ADAPTERS, busy_tools.BEGUN: str(begun)}
    async with real_stacks(
        tmp_path, free_ports(2), provider=provider, agent=agent, worker_environment=settings
    ) as stacks:
        await stacks.gateway.start()
        await stacks.worker.start()

        run_id = await stacks.created("count to a hundred")
        lost = False
        with anyio.fail_after(LEASE.total_seconds() + 60):
            while (run := await stacks.run(run_id)).status in {"queued", "running"}:
                # What the sweep of any other worker would find.
                lost |= bool(await stacks.runs.orphans(NODE, queued_for=timedelta(minutes=5), limit=10))
                await anyio.sleep(0.5)

    assert (run.status, run.epoch, run.recoveries, lost) == ("succeeded", 1, 0, False)
    assert run.finished_at is not None
    assert run.finished_at - run.created_at > LEASE
    assert begun.read_text() == f"{run_id}:2\n"


class CutOff:
    """A run store that takes no renewals while it is `away`, and notes the epoch of each append."""

    def __init__(self, port: Any) -> None:
        self._port = port
        self.away = False
        self.appended: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def renew(self, *arguments: Any) -> Any:
        if self.away:
            raise Unavailable("away")
        return await self._port.renew(*arguments)

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Any:
        self.appended.append(epoch)
        return await self._port.append(auth, run_id, epoch, change)


async def test_a_busy_worker_that_was_cut_off_writes_nothing_when_it_comes_back() -> None:
    clock = HastyClock()
    before: list[int] = []

    async def hold(_auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        # Unsafe, so its intent is committed by now.
        before.extend(store.appended)
        store.away = True
        keep_busy_until_given_up(clock, worker)
        store.away = False
        return {"held": True}

    async with stack_a(clock=clock, wrap=lambda name, port: CutOff(port) if name == "run_state" else port) as node:
        store = cast("CutOff", node.run_state)

        @asynccontextmanager
        async def its_store() -> AsyncIterator[Any]:
            yield store

        tools = InprocTools([tool("send", hold, effect="unsafe")], clock)
        async with node.worker(model(scripted([calls("send"), "never"])), tools, keep=kept_apart(its_store)) as worker:
            run_id = RunId(await node.created())
            with anyio.fail_after(20):
                while (run := await node.run_state.load(ACME, run_id)).status != "needs_operator":
                    await clock.sleep(timedelta(seconds=0.5))

    # All that was written after it came back was written under a new claim.
    assert (run.epoch, run.recoveries) == (2, 1)
    assert set(store.appended[len(before) :]) == {2}


def keep_busy_until_given_up(clock: HastyClock, worker: Worker) -> None:
    first, most = worker.id, clock.monotonic() + 10 * LEASE.total_seconds()
    while worker.id == first and clock.monotonic() < most:
        clock.block(timedelta(seconds=0.2))
