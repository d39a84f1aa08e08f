"""Priority as an integrator meets it."""

import pytest

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.agent import AgentSpec
from ports.context import AuthContext
from ports.ids import AgentId
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.priority import DEFAULT
from ports.run_state import RunFilter
from tests.support.stack_a import StackA, stack_a
from tests.support.worker import ended_in_time, until_status

pytestmark = pytest.mark.anyio


async def view(node: StackA, run_id: str) -> Json:
    found: Json = (await node.get(f"/v1/runs/{run_id}")).json()
    return found


@pytest.mark.parametrize("priority", [-1, 10, 1.5, "9", None])
async def test_what_is_no_priority_is_refused(priority: Json) -> None:
    async with stack_a() as node:
        refused = await node.create(priority=priority)
        page = await node.run_state.list_runs(ACME, RunFilter(), limit=10)

    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "validation_failed")
    assert "priority" in refused.json()["error"]["message"]
    assert page.items == ()


async def test_a_run_tells_its_priority_and_has_the_middle_one_if_none_is_said() -> None:
    async with stack_a() as node:
        urgent, plain = await node.created(priority=9), await node.created()
        told = [await view(node, run_id) for run_id in (urgent, plain)]
        document = (await node.http.get("/openapi.json")).json()

    assert [one["priority"] for one in told] == [9, DEFAULT]
    declared = document["components"]["schemas"]["CreateRun"]["properties"]["priority"]
    assert (declared["minimum"], declared["maximum"], declared["default"]) == (0, 9, DEFAULT)


async def test_a_tenants_more_urgent_runs_start_first() -> None:
    clock = ManualClock()
    order: list[str] = []

    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        order.append(str(request.messages[-1].content))
        return Message(role="assistant", content="done")

    model = InprocModel(InprocModelConfig(chat_models=("m",)), rule)
    async with stack_a(clock=clock) as node:
        created = [await node.created(input=str(n), priority=n) for n in (3, 0, 9, 5, 9)]
        async with node.worker(model, InprocTools([], clock), concurrency=1):
            for run_id in created:
                await ended_in_time(node, clock, run_id)

    assert order == ["9", "9", "5", "3", "0"]


async def test_the_runs_that_a_run_makes_have_its_priority_and_so_has_its_return() -> None:
    clock = ManualClock()

    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        if "hand on" in str(request.messages[-1].content):
            call = ToolRequest(id="c", name="agt_helper", arguments='{"input": "help"}')
            return Message(role="assistant", tool_calls=(call,))
        return Message(role="assistant", content="done")

    model = InprocModel(InprocModelConfig(chat_models=("m",)), rule)
    async with stack_a(clock=clock) as node:
        await node.api.agent.publish(ACME, AgentSpec(id=AgentId("agt_helper"), model="m", description="helps"))
        demo = AgentSpec(id=AgentId("agt_demo"), model="m", agents=(AgentId("agt_helper"),))
        await node.api.agent.publish(ACME, demo)
        run_id = await node.created(input="hand on", priority=8)
        async with node.worker(model, InprocTools([], clock)):
            run = await ended_in_time(node, clock, run_id)
        children = await node.run_state.list_runs(ACME, RunFilter(parent=run.id), limit=10)

    assert run.status == "succeeded"
    assert [child.priority for child in children.items] == [8]


async def test_a_waiting_run_tells_what_it_waits_for() -> None:
    clock = ManualClock()

    def rule(_auth: AuthContext, _request: ChatRequest) -> Message:
        call = ToolRequest(id="c", name="agt_nobody_works_on", arguments='{"input": "help"}')
        return Message(role="assistant", tool_calls=(call,))

    model = InprocModel(InprocModelConfig(chat_models=("m",)), rule)
    async with stack_a(clock=clock) as node:
        helper = AgentSpec(id=AgentId("agt_nobody_works_on"), model="m", agents=(AgentId("agt_nobody_works_on"),))
        await node.api.agent.publish(ACME, helper)
        demo = AgentSpec(id=AgentId("agt_demo"), model="m", agents=(helper.id,))
        await node.api.agent.publish(ACME, demo)
        run_id = await node.created(input="hand on")
        before = await view(node, run_id)
        async with node.worker(model, InprocTools([], clock), concurrency=1):
            await until_status(node, run_id, "waiting")
        told = await view(node, run_id)

    assert [one["waits_for"] for one in (before, told)] == [None, "child"]
