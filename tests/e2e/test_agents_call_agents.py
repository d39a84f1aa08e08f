"""Agents that hand work to other agents, over the in-process adapters: a run for each piece, and a parent that waits."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest
from msgspec.structs import replace

from conformance.clock import ManualClock
from conformance.people import ACME
from ports.agent import MAX_RUN_DEPTH, AgentLimits
from ports.context import AuthContext
from ports.errors import ResourceExhausted, Unavailable
from ports.ids import AgentId, RunId
from ports.model import ChatRequest
from ports.run_state import Adrift
from ports.tenant import Entitlements
from ports.tool import ToolCall, ToolPort, ToolResult
from stack_a.runs.journal import read_steps
from stack_a.runs.replay import replay
from stack_a.tools.agents import with_agents
from tests.support.stack_a import StackA, stack_a
from tests.support.teams import (
    BOSS,
    HAND,
    HELP,
    errors_heard,
    family,
    handing,
    heard,
    member,
    parts,
    steps_of,
    team,
    turn,
    until_is,
    until_made,
)  # fmt: skip
from tests.support.worker import Toolbox, ended_in_time, log_of, until

pytestmark = pytest.mark.anyio

SECOND = timedelta(seconds=1)


class Unmended:
    """A run store whose sweep finds nobody: whoever ends a run, or makes it wait, has to tell the others."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def adrift(self, *_: object, **__: object) -> tuple[Adrift, ...]:
        return ()


class Losing:
    """Tools, of which nobody hears whether `send` acted."""

    def __init__(self, port: ToolPort) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        if call.name == "send":
            raise Unavailable("the answer was lost", code="tool_timeout")
        return await self._port.invoke(auth, call, timeout=timeout)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tools() -> Toolbox:
    return Toolbox()


@pytest.fixture
async def node(clock: ManualClock) -> AsyncIterator[StackA]:
    async with stack_a(clock=clock, wrap=lambda name, port: Unmended(port) if name == "run_state" else port) as made:
        await team(made, member(BOSS, HAND), member(HAND, HELP), member(HELP))
        yield made


async def test_what_an_agent_answers_is_what_its_caller_hears(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    def did(request: ChatRequest) -> str:
        return f"did {request.messages[-1].content}"

    async with node.worker(parts(handing({"sum": [1, 1]}), heard, hand=(did,)), tools.port(clock)):
        run_id = await node.created(context={"ticket": 7})
        run = await ended_in_time(node, clock, run_id)

    [child] = await family(node, run_id)
    assert child.output == {"text": 'did {"sum":[1,1]}'}
    assert run.output == {"text": f'{{"output":{{"text":"did {{\\"sum\\":[1,1]}}"}},"run_id":"{child.id}"}}'}
    assert (child.input, child.context, child.requester) == ({"sum": [1, 1]}, {"ticket": 7}, run.requester)
    assert run.epoch == 2


async def test_a_run_and_its_children_show_each_other(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(parts(handing("one"), "thanks"), tools.port(clock)):
        run_id = await node.created()
        run = await ended_in_time(node, clock, run_id)

    listed = (await node.get(f"/v1/runs?parent_run_id={run_id}")).json()["items"]
    view = (await node.get(f"/v1/runs/{run_id}")).json()
    steps = (await node.get(f"/v1/runs/{run_id}/steps")).json()["items"]
    assert [(one["parent_run_id"], one["depth"]) for one in [view, *listed]] == [(None, 0), (run_id, 1)]
    assert [(step["kind"], step["name"], step["effect"]) for step in steps[1:2]] == [("agent", HAND, "idempotent")]
    assert steps[1]["output"] == {"run_id": listed[0]["run_id"], "output": {"text": "done"}}
    assert steps[1]["usage"] == listed[0]["usage"]
    assert run.usage.total_tokens == sum(step["usage"]["total_tokens"] for step in steps)
    assert (await node.get("/v1/runs?parent_run_id=nobody")).status_code == 400


async def test_the_log_tells_of_the_child_and_of_the_wait(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(parts(handing("one"), "thanks"), tools.port(clock)):
        run_id = await node.created()
        await ended_in_time(node, clock, run_id)

    [child] = await family(node, run_id)
    log = await log_of(node, run_id)
    assert [event["event"] for event in log if not event["event"].startswith("model.")] == [
        "run.created", "run.started", "step.started", "step.completed", "step.started", "agent.requested", "run.waiting",
        "agent.completed", "step.completed", "step.started", "step.completed", "run.completed",
    ]  # fmt: skip
    told = {event["event"]: event["data"] for event in log}
    assert told["agent.requested"] == {"step": 2, "agent": HAND, "arguments": {"input": "one"}}
    assert told["run.waiting"] == {"for": "child", "children": [{"step": 2, "run_id": child.id}]}
    assert told["agent.completed"]["output"] == {"run_id": child.id, "output": {"text": "done"}}
    assert (await log_of(node, child.id))[0]["data"]["parent"] == {"run_id": run_id, "step": 2, "depth": 1}


async def test_children_of_one_turn_work_at_the_same_time(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(parts(handing("one", "two"), heard, hand=(turn(("slow", {})), "done")), tools.port(clock)):
        run_id = await node.created()
        await until(lambda: tools.together == 2)
        waits = await until_is(node, clock, run_id, "waiting")
        tools.let_go.set()
        run = await ended_in_time(node, clock, run_id)

    assert (waits.worker, run.status, run.epoch) == (None, "succeeded", 2)


async def test_no_more_children_work_at_a_time_than_the_agent_may_call_tools(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    await team(node, member(BOSS, HAND, limits=AgentLimits(max_parallel_tools=2)))
    made = []
    async with node.worker(parts(handing(*"abc"), "thanks", hand=(turn(("slow", {})), "done")), tools.port(clock)):
        run_id = await node.created()
        await until(lambda: tools.together == 2)
        await until_is(node, clock, run_id, "waiting")
        made.append(len(await family(node, run_id)))
        tools.let_go.set()
        run = await ended_in_time(node, clock, run_id)
        made.append(len(await family(node, run_id)))

    assert (run.status, run.epoch, made, tools.most_together) == ("succeeded", 3, [2, 3], 2)


async def test_tools_beside_an_agent_end_before_the_run_waits(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    both = turn(("send", {}), (HAND, {"input": "x"}))
    async with node.worker(parts(both, "thanks"), tools.port(clock)):
        run_id = await node.created()
        [child] = await until_made(node, run_id)
        await until_is(node, clock, child.id, "succeeded")
        meanwhile = (await node.run_state.load(ACME, RunId(run_id))).status
        tools.let_go.set()
        run = await ended_in_time(node, clock, run_id)

    assert (meanwhile, run.status, len(tools.keys)) == ("running", "succeeded", 1)
    assert tools.cancelled == 0


async def test_an_unsafe_call_in_doubt_is_settled_before_the_run_waits(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    both = turn(("send", {}), (HAND, {"input": "x"}))
    lost = Losing(tools.port(clock))
    async with node.worker(parts(both, "thanks", hand=(turn(("slow", {})), "done")), cast("Any", lost)):
        run_id = await node.created()
        await until_is(node, clock, run_id, "needs_operator")
        [child] = await family(node, run_id)
        await node.verb(run_id, "resolve", "eve", step=2, decision="done", output=None)
        await until_is(node, clock, run_id, "waiting")
        tools.let_go.set()
        ended = [(await ended_in_time(node, clock, one)).status for one in (run_id, child.id)]

    assert ended == ["succeeded", "succeeded"]


async def test_a_run_that_its_worker_ends_takes_its_children_with_it(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    both = turn(("slow", {}), (HAND, {"input": "x"}))
    async with node.worker(parts(both, "never said", hand=(turn(("slow", {})), "done")), tools.port(clock)):
        run_id = await node.created()
        await until(lambda: tools.together == 2)
        [child] = await family(node, run_id)
        await node.cancel(run_id)
        ended = [(await ended_in_time(node, clock, one)).status for one in (run_id, child.id)]

    assert (ended, tools.cancelled) == (["cancelled", "cancelled"], 2)


async def test_a_waiting_run_keeps_neither_slot_nor_place_from_its_child(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    await node.entitle(ACME, Entitlements(max_active_runs=1))
    async with node.worker(
        parts(handing("one", "two"), "thanks", hand=(handing("deeper", to=HELP), "done")),
        tools.port(clock),
        concurrency=1,
    ):
        run = await ended_in_time(node, clock, await node.created())

    assert run.status == "succeeded"


async def test_the_model_is_told_that_a_child_failed(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    await team(node, member(HAND, limits=AgentLimits(max_steps=1)))
    async with node.worker(parts(handing("x"), errors_heard, hand=(turn(("add", {})),)), tools.port(clock)):
        run_id = await node.created()
        run = await ended_in_time(node, clock, run_id)

    [child] = await family(node, run_id)
    step = (await read_steps(node.run_state, ACME, RunId(run_id)))[1]
    assert (run.status, run.output) == ("succeeded", {"text": "child_failed"})
    assert (step.status, step.output, step.usage) == ("failed", {"run_id": child.id}, child.usage)
    assert step.error is not None
    assert child.id in step.error.message
    assert "max_steps_exceeded" in step.error.message


async def test_an_agent_that_calls_itself_is_stopped_at_the_depth_limit(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    await team(node, member(HAND, HAND))
    async with node.worker(parts(handing("x"), heard, hand=(handing("deeper"), errors_heard)), tools.port(clock)):
        run_id = await node.created()
        await ended_in_time(node, clock, run_id)

    line, below = [], await family(node, run_id)
    while below:
        line += below
        below = [child for run in below for child in await family(node, run.id)]
    assert [run.depth for run in line] == list(range(1, MAX_RUN_DEPTH + 1))
    assert {run.status for run in line} == {"succeeded"}
    assert [run.output["text"] for run in line] == ["", "", "", "", "max_depth_exceeded"]
    assert (await steps_of(node, line[-1].id))[1] == ("agent", "failed")


async def test_a_parent_waits_for_a_child_that_waits_for_a_person(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    await team(
        node,
        member(BOSS, HAND, limits=AgentLimits(deadline_s=3_600)),
        member(HAND, limits=AgentLimits(deadline_s=3_600)),
    )
    async with node.worker(parts(handing("x"), "thanks", hand=(turn(("send", {})), "done")), tools.port(clock)):
        run_id = await node.created()
        await until(tools.begun.is_set)
        await until_is(node, clock, run_id, "waiting")
    [child] = await family(node, run_id)
    async with node.worker(parts(handing("x"), "thanks", hand=(turn(("send", {})), "done")), tools.port(clock)):
        await until_is(node, clock, child.id, "needs_operator")
        await clock.advance(10 * SECOND)
        meanwhile = (await node.run_state.load(ACME, RunId(run_id))).status
        await node.verb(child.id, "resolve", "eve", step=2, decision="done", output=None)
        run = await ended_in_time(node, clock, run_id)

    assert (meanwhile, run.status) == ("waiting", "succeeded")


async def test_a_child_that_is_not_admitted_is_waited_for(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    await node.entitle(ACME, Entitlements(runs_per_minute=1))
    async with node.worker(parts(handing("x"), "thanks"), tools.port(clock)):
        run = await ended_in_time(node, clock, await node.created())

    assert run.status == "succeeded"


async def test_the_model_is_told_that_a_child_was_never_admitted(tools: Toolbox, clock: ManualClock) -> None:
    class Full:
        """A run store that has no room for children."""

        def __init__(self, port: Any) -> None:
            self._port = port

        def __getattr__(self, name: str) -> Any:
            return getattr(self._port, name)

        async def create(self, auth: Any, new: Any) -> Any:
            if new.parent is not None:
                raise ResourceExhausted("no room", code="concurrency_limited")
            return await self._port.create(auth, new)

    async with stack_a(clock=clock, wrap=lambda name, port: Full(port) if name == "run_state" else port) as node:
        await team(node, member(BOSS, HAND), member(HAND))
        async with node.worker(parts(handing("x"), errors_heard), tools.port(clock)):
            run = await ended_in_time(node, clock, await node.created())

    assert (run.status, run.output) == ("succeeded", {"text": "concurrency_limited"})


@pytest.mark.parametrize("body", [{"tool_allowlist": ["add"]}, {}], ids=["not in the allow-list", "not there"])
async def test_an_agent_that_may_not_be_called_is_not(
    node: StackA, tools: Toolbox, clock: ManualClock, body: dict[str, Any]
) -> None:
    if not body:
        await team(node, replace(member(BOSS), agents=(AgentId("agt_nobody"),)))
    async with node.worker(parts(handing("x"), errors_heard), tools.port(clock)):
        run_id = await node.created(**body)
        run = await ended_in_time(node, clock, run_id)

    assert run.output == {"text": "tool_not_allowed"}
    assert await family(node, run_id) == []


async def test_an_allow_list_names_agents_like_tools(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(parts(handing("x"), "thanks"), tools.port(clock)):
        run = await ended_in_time(node, clock, await node.created(tool_allowlist=[HAND]))
        refused = await node.create(tool_allowlist=["agt_stranger"])

    assert (run.status, refused.status_code) == ("succeeded", 422)


async def test_a_fork_takes_over_what_a_child_answered_and_calls_no_agent_again(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(parts(handing("x"), heard), tools.port(clock)):
        run_id = await node.created()
        run = await ended_in_time(node, clock, run_id)
        fork_id = (await node.verb(run_id, "fork", from_step=2)).json()["run_id"]
        anew_id = (await node.verb(run_id, "fork", from_step=1)).json()["run_id"]
        fork, anew = [await ended_in_time(node, clock, one) for one in (fork_id, anew_id)]

    assert fork.output == run.output
    assert [len(await family(node, one)) for one in (run_id, fork_id, anew_id)] == [1, 0, 1]
    assert anew.status == "succeeded"


async def test_a_run_with_children_replays_whole(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(parts(handing("one", "two"), handing("three"), heard), tools.port(clock)):
        run_id = RunId(await node.created())
        run = await ended_in_time(node, clock, run_id)
        served = {spec.name: spec for spec in await tools.port(clock).list_tools(ACME)}

    agent = (await node.api.agent.get(ACME, BOSS, run.agent_version)).spec
    known = await with_agents(node.api.agent, ACME, agent, served)
    replayed = replay(run, agent, known, await read_steps(node.run_state, ACME, run_id))
    assert (replayed.complete, replayed.divergence, replayed.decisions) == (True, None, 7)
