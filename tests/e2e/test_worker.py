"""The worker and the engine over the in-process adapters: runs end, once, whatever happens to who executes them."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from adapters.inproc.model import InprocModel, InprocModelConfig, scripted
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.agent import AgentLimits
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.model import ChatReply, ChatRequest, Message
from stack_a.lease import RENEW_EVERY
from tests.support.stack_a import AGENT, StackA, stack_a
from tests.support.worker import Toolbox, calls, ended_in_time, log_of, model, takeover, until, until_status, until_told

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def node(clock: ManualClock) -> AsyncIterator[StackA]:
    async with stack_a(clock=clock) as made:
        yield made


@pytest.fixture
def tools() -> Toolbox:
    return Toolbox()


async def test_a_run_with_a_tool_call_tells_its_whole_story_in_order(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(model(scripted([calls("add"), "It is 2."])), tools.port(clock)):
        run_id = await node.created(input="1 + 1?")
        run = await node.ended(run_id)

    events = await log_of(node, run_id)
    assert (run.status, run.output) == ("succeeded", {"text": "It is 2."})
    assert [event["event"] for event in events] == [
        "run.created", "run.started",
        "step.started", "model.requested", "model.completed", "step.completed",
        "step.started", "tool.requested", "tool.completed", "step.completed",
        "step.started", "model.requested", "model.delta", "model.completed", "step.completed",
        "run.completed",
    ]  # fmt: skip
    assert [event["sequence"] for event in events] == list(range(1, 17))
    assert events[-1]["data"]["output"] == {"text": "It is 2."}
    assert run.usage.total_tokens == events[-1]["data"]["usage"]["total_tokens"] > 0


async def test_the_steps_can_be_read_in_pages(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(model(scripted([calls("add"), "done"])), tools.port(clock)):
        run_id = await node.created()
        await node.ended(run_id)

    whole = (await node.get(f"/v1/runs/{run_id}/steps?limit=3")).json()
    first = (await node.get(f"/v1/runs/{run_id}/steps?limit=2")).json()
    rest = (await node.get(f"/v1/runs/{run_id}/steps?limit=2&cursor={first['next_cursor']}")).json()

    assert [(step["n"], step["kind"], step["status"]) for step in first["items"] + rest["items"]] == [
        (1, "model", "completed"), (2, "tool", "completed"), (3, "model", "completed")
    ]  # fmt: skip
    assert rest["next_cursor"] is whole["next_cursor"] is None


async def test_tool_calls_of_one_turn_run_together(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(model(scripted([calls("slow", "slow", "slow"), "done"])), tools.port(clock)):
        run_id = await node.created()
        await until(lambda: tools.together == 3)
        tools.let_go.set()
        run = await node.ended(run_id)

    assert run.status == "succeeded"
    assert len(set(tools.keys)) == 3


async def test_a_tool_that_fails_is_told_to_the_model_and_the_run_goes_on(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    heard: list[str | None] = []

    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        heard.append(request.messages[-1].content)
        return calls("nonsense") if len(heard) == 1 else Message(role="assistant", content="I could not.")

    async with node.worker(model(rule), tools.port(clock)):
        run = await node.ended(await node.created())

    assert run.status == "succeeded"
    assert "tool_not_allowed" in (heard[1] or "")


async def test_a_run_whose_worker_dies_is_taken_over_and_no_step_is_recorded_twice(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    talk = model(scripted([calls("add", "slow"), "done"]))
    async with node.worker(talk, tools.port(clock)):
        run_id = await node.created()
        await until(tools.begun.is_set)
        await until_told(node, clock, run_id, "tool.completed")

    tools.let_go.set()
    async with node.worker(talk, tools.port(clock)):
        await takeover(clock)
        run = await node.ended(run_id)

    events = await log_of(node, run_id)
    results = [event["data"]["step"] for event in events if event["event"] in {"tool.completed", "model.completed"}]
    assert (run.status, run.recoveries, run.epoch) == ("succeeded", 1, 2)
    assert sorted(results) == [1, 2, 3, 4]
    assert tools.keys.count(f"{run_id}:3") == 2
    assert tools.keys.count(f"{run_id}:2") == 1


async def test_the_facts_of_instant_steps_share_their_commits(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(model(scripted([calls("add"), calls("add"), "done"])), tools.port(clock)):
        run_id = await node.created()
        await node.ended(run_id)

    events = await log_of(node, run_id)
    assert len({event["time"] for event in events}) <= 3
    assert len(events) > 20


async def test_a_call_that_takes_its_time_is_told_while_it_runs(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(model(scripted([calls("slow"), "done"])), tools.port(clock)):
        run_id = await node.created()
        await until(tools.begun.is_set)
        await until_told(node, clock, run_id, "tool.requested")
        still_running = not tools.let_go.is_set()
        tools.let_go.set()
        run = await node.ended(run_id)

    assert still_running
    assert run.status == "succeeded"


async def test_an_unsafe_tool_is_not_begun_before_its_intent_is_durable(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(model(scripted([calls("send"), "done"])), tools.port(clock)):
        run_id = await node.created()
        await until(tools.begun.is_set)

        steps = await node.run_state.steps(ACME, run_id)  # type: ignore[arg-type]  # a str of the API

    assert [(step.n, step.status) for step in steps] == [(1, "completed"), (2, "started")]


async def test_an_interrupted_unsafe_tool_is_not_repeated_and_waits_for_an_operator(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    talk = model(scripted([calls("send"), "done"]))
    async with node.worker(talk, tools.port(clock)):
        run_id = await node.created()
        await until(tools.begun.is_set)

    async with node.worker(talk, tools.port(clock)):
        await takeover(clock)
        await until_status(node, run_id, "needs_operator")

    steps = (await node.get(f"/v1/runs/{run_id}/steps")).json()["items"]
    assert [step["status"] for step in steps] == ["completed", "unknown"]
    assert tools.keys == [f"{run_id}:2"]


async def test_a_run_that_waits_for_an_operator_can_be_cancelled(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    talk = model(scripted([calls("send")]))
    async with node.worker(talk, tools.port(clock)):
        run_id = await node.created()
        await until(tools.begun.is_set)
    async with node.worker(talk, tools.port(clock)):
        await takeover(clock)
        await until_status(node, run_id, "needs_operator")

    response = await node.cancel(run_id)

    assert response.json()["status"] == "cancelled"


async def test_cancelling_reaches_a_running_tool(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(model(scripted([calls("slow"), "never said"])), tools.port(clock)):
        run_id = await node.created()
        await until(tools.begun.is_set)

        asked = await node.cancel(run_id)
        await clock.advance(RENEW_EVERY)
        run = await node.ended(run_id)

    assert asked.json()["status"] == "running"
    assert asked.json()["cancel_requested_at"] is not None
    assert run.status == "cancelled"
    assert tools.cancelled == 1
    assert (await log_of(node, run_id))[-1]["event"] == "run.cancelled"


async def test_a_tool_that_ends_as_if_it_was_cancelled_fails_its_step_and_nothing_else(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    tools.let_go.set()
    tools.vanishes = True
    async with node.worker(model(scripted([calls("slow"), "gone", calls("add"), "there"])), tools.port(clock)):
        broken = await node.ended(await node.created())
        after = await node.ended(await node.created())

    [_, step, _] = await node.run_state.steps(ACME, broken.id)
    assert (step.status, step.error and step.error.code) == ("failed", "internal")
    assert after.output == {"text": "there"}


async def test_a_run_one_of_whose_own_tasks_is_cancelled_out_of_the_blue_is_handed_back(
    tools: Toolbox, clock: ManualClock
) -> None:
    class Vanishing:
        """A run store that ends one append as if it was cancelled: the first that is made while the tool is at it."""

        def __init__(self, port: Any) -> None:
            self._port = port

        def __getattr__(self, name: str) -> Any:
            return getattr(self._port, name)

        async def append(self, *arguments: Any) -> Any:
            if tools.begun.is_set() and not tools.let_go.is_set():
                tools.let_go.set()
                raise asyncio.CancelledError
            return await self._port.append(*arguments)

    def wrap(name: str, port: Any) -> Any:
        return Vanishing(port) if name == "run_state" else port

    async with (
        stack_a(clock=clock, wrap=wrap) as node,
        node.worker(model(scripted([calls("slow"), "there"])), tools.port(clock)),
    ):
        run = await ended_in_time(node, clock, await node.created())

    assert (run.status, run.error, run.epoch, run.recoveries) == ("succeeded", None, 2, 0)


async def test_the_deadline_ends_a_run_and_interrupts_its_tool(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(model(scripted([calls("slow"), "never said"])), tools.port(clock)):
        run_id = await node.created(deadline_s=10)
        await until(tools.begun.is_set)
        await clock.advance(timedelta(seconds=10))
        run = await node.ended(run_id)

    assert run.status == "failed"
    assert run.error is not None
    assert run.error.code == "run_timeout"
    assert tools.cancelled == 1


async def test_a_model_that_is_briefly_away_is_asked_again(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    asked = 0

    def rule(_auth: AuthContext, _request: ChatRequest) -> Message:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise Unavailable("restarting")
        return Message(role="assistant", content="back")

    async with node.worker(model(rule), tools.port(clock)):
        run_id = await node.created()
        with anyio.fail_after(5):
            while asked < 3:
                await clock.advance(timedelta(seconds=10))
        run = await node.ended(run_id)

    assert (run.status, run.output) == ("succeeded", {"text": "back"})


async def test_a_model_step_is_asked_the_same_again_although_a_redeploy_changed_a_tools_description(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    answer = anyio.Event()
    asked: list[str] = []

    async def slowly(request: ChatRequest) -> Message:
        await answer.wait()
        return Message(role="assistant", content="done") if len(request.messages) > 2 else calls("add")

    def rule(_auth: AuthContext, request: ChatRequest) -> Message | Coroutine[Any, Any, Message]:
        asked.append(request.tools[0].description)
        return slowly(request)

    # The gateway outlives both workers, and knows each step by its request.
    gateway = model(rule)
    async with node.worker(gateway, tools.port(clock)):
        run_id = await node.created()
        await until_told(node, clock, run_id, "model.requested")
    answer.set()
    tools.description = "adds, and carries"
    async with node.worker(gateway, tools.port(clock)):
        await takeover(clock)
        run = await node.ended(run_id)

    assert (run.status, run.error) == ("succeeded", None)
    assert asked == ["adds", "adds, and carries"]


async def test_a_model_error_that_no_retry_can_fix_fails_the_run_with_its_code(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(InprocModel(InprocModelConfig(chat_models=("other",))), tools.port(clock)):
        run = await node.ended(await node.created())

    assert run.status == "failed"
    assert run.error is not None
    assert run.error.code == "model_not_entitled"


async def test_a_run_whose_model_calls_have_cost_what_they_may_asks_the_model_no_more(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    class Costly(InprocModel):
        async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
            reply = await super().chat(auth, request)
            return replace(reply, usage=replace(reply.usage, cost_nanousd=60))

    await node.api.agent.publish(ACME, replace(AGENT, limits=AgentLimits(max_cost_nanousd=100)))
    talk = Costly(InprocModelConfig(chat_models=("m",)), lambda _auth, _request: calls("add"))
    async with node.worker(talk, tools.port(clock)):
        run = await node.ended(await node.created())

    last = (await log_of(node, run.id))[-1]
    assert (run.status, run.usage.cost_nanousd, len(tools.keys)) == ("failed", 120, 2)
    assert (last["event"], last["data"]["error"]["code"]) == ("run.failed", "max_cost_exceeded")


async def test_a_defect_fails_the_run_instead_of_going_round_for_ever(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    def broken(_auth: AuthContext, _request: ChatRequest) -> Message:
        raise RuntimeError("a bug of an adapter")

    async with node.worker(model(broken), tools.port(clock)):
        run = await node.ended(await node.created())

    steps = (await node.get(f"/v1/runs/{run.id}/steps")).json()["items"]
    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.code, "bug" in run.error.message) == ("internal", False)
    assert [step["status"] for step in steps] == ["unknown"]
