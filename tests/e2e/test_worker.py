"""The worker and the engine over the in-process adapters: runs end, once, whatever happens to who executes them."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from adapters.inproc import queue as inproc_queue
from adapters.inproc.model import InprocModel, InprocModelConfig, Rule, scripted
from adapters.inproc.tool import InprocTools, PythonTool
from conformance.clock import ManualClock
from conformance.faults import Faults, Kind
from conformance.people import ACME
from ports.agent import AgentLimits
from ports.context import AuthContext
from ports.errors import InvalidArgument, Unavailable
from ports.ids import RunId, TenantId
from ports.messages import Json
from ports.model import ChatReply, ChatRequest, Message, ToolRequest
from ports.queue import Delivery
from ports.run_state import TERMINAL, Change, EffectClass, Run, RunStatus
from ports.tenant import Entitlements
from ports.tool import ToolPort, ToolSpec
from stack_a import worker as worker_module
from stack_a.runs import execute as execute_module
from tests.support.stack_a import AGENT, StackA, events_of, stack_a

pytestmark = pytest.mark.anyio


class Toolbox:
    """The agent's three tools: `add` answers, `slow` waits until it is let go, `send` is like `slow` but unsafe."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.begun = anyio.Event()
        self.let_go = anyio.Event()
        self.cancelled = 0
        self.together = 0
        self.most_together = 0
        self.vanishes = False
        """Whether `slow` raises a cancellation of its own making."""
        self.description = "adds"
        """Of `add`."""

    def port(self, clock: ManualClock) -> ToolPort:
        add = self._tool("add", self._add)
        described = dataclasses.replace(add, spec=replace(add.spec, description=self.description))
        return InprocTools([described, self._tool("slow", self._wait), self._tool("send", self._wait, "unsafe")], clock)

    @staticmethod
    def _tool(
        name: str, act: Callable[[AuthContext, dict[str, Json], str], Awaitable[Json]], effect: EffectClass = "pure"
    ) -> PythonTool:
        schema: dict[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
        spec = ToolSpec(name=name, description=name, input_schema=schema, effect=effect, timeout=timedelta(hours=1))
        return PythonTool(spec=spec, act=act)

    async def _add(self, _auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        self.keys.append(key)
        return {"sum": 2}

    async def _wait(self, _auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        self.keys.append(key)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        self.begun.set()
        try:
            await self.let_go.wait()
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.together -= 1
        if self.vanishes:
            raise asyncio.CancelledError
        return {"done": True}


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


def slow_then_done(_auth: AuthContext, request: ChatRequest) -> Message:
    return Message(role="assistant", content="done") if request.messages[-1].role == "tool" else calls("slow")


def calls(*names: str) -> Message:
    requests = tuple(ToolRequest(id=f"call_{i}", name=name, arguments="{}") for i, name in enumerate(names))
    return Message(role="assistant", tool_calls=requests)


def model(rule: Rule) -> InprocModel:
    return InprocModel(InprocModelConfig(chat_models=("m",)), rule)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def takeover(clock: ManualClock) -> None:
    """Let a dead worker's lease lapse and another one sweep, second by second, so that the living keep renewing."""
    for _ in range(round((worker_module.LEASE + worker_module.SWEEP_EVERY * 2).total_seconds())):
        await clock.advance(timedelta(seconds=1))


async def until_status(node: StackA, run_id: str, status: RunStatus) -> Run:
    with anyio.fail_after(5):
        while (run := await node.run_state.load(ACME, run_id)).status != status:  # type: ignore[arg-type]  # a str of the API
            await anyio.lowlevel.checkpoint()
    return run


async def until_told(node: StackA, clock: ManualClock, run_id: str, kind: str) -> None:
    """Until the log has an event of this kind, while the time passes that facts may wait for company."""
    with anyio.fail_after(5):
        while kind not in {event.type for event in await node.api.event.read(ACME, RunId(run_id))}:
            await clock.advance(execute_module.TELL_WITHIN)


async def ended_in_time(node: StackA, clock: ManualClock, run_id: str) -> Run:
    """The run once it has ended, with time passing until then."""
    with anyio.fail_after(10):
        while (run := await node.run_state.load(ACME, run_id)).status not in TERMINAL:  # type: ignore[arg-type]  # a str of the API
            await clock.advance(worker_module.ROOM_AFTER)
    return run


async def log_of(node: StackA, run_id: str) -> list[dict[str, Any]]:
    return events_of((await node.get(f"/v1/runs/{run_id}/events")).text)


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
        await clock.advance(worker_module.RENEW_EVERY)
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


async def test_the_deadline_ends_a_run_and_interrupts_its_tool(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(model(scripted([calls("slow"), "never said"])), tools.port(clock)):
        run_id = await node.created(deadline_s=20)
        await until(tools.begun.is_set)
        await clock.advance(timedelta(seconds=20))
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


async def test_a_run_whose_hint_was_lost_is_found_by_the_sweep(clock: ManualClock, tools: Toolbox) -> None:
    class Losing:
        """A queue that loses what it is given."""

        def __init__(self, queue: Any) -> None:
            self._queue = queue

        def __getattr__(self, name: str) -> Any:
            return getattr(self._queue, name)

        async def enqueue(self, *_: object) -> None:
            raise Unavailable("the broker is down")

    async with stack_a(clock=clock, wrap=lambda name, port: Losing(port) if name == "queue" else port) as node:
        run_id = await node.created()
        async with node.worker(model(scripted(["found"])), tools.port(clock)):
            await takeover(clock)
            run = await node.ended(run_id)

    assert run.output == {"text": "found"}


@pytest.mark.parametrize(("port", "method", "kind"), [("run_state", "claim", "after"), ("queue", "ack", "before")])
async def test_a_claim_or_an_acknowledgement_that_is_not_answered_does_not_strand_the_run(
    clock: ManualClock, tools: Toolbox, port: str, method: str, kind: Kind
) -> None:
    faults = Faults()
    faults.inject(method, kind)

    async with stack_a(clock=clock, wrap=lambda name, given: faults.around(given) if name == port else given) as node:
        run_id = await node.created()
        async with node.worker(model(scripted([calls("add"), "found"])), tools.port(clock)):
            await takeover(clock)
            run = await node.ended(run_id)

    assert (run.status, run.epoch, tools.keys) == ("succeeded", 1, [f"{run_id}:2"])


async def test_a_run_that_comes_back_to_its_worker_before_it_was_left_is_executed_to_its_end(
    clock: ManualClock, tools: Toolbox
) -> None:
    faults = Faults()

    async with stack_a(clock=clock, wrap=lambda _, given: faults.around(given)) as node:
        run_id = await node.created()
        # The first execution ends by handing the run back, and is still telling the queue when the sweep finds the run.
        faults.inject("append", "before")
        faults.inject("enqueue", "late")
        async with node.worker(model(scripted([calls("slow"), "done"])), tools.port(clock)) as worker:
            await until(tools.begun.is_set)
            for _ in range(10):
                await clock.advance(timedelta(seconds=1))
            await until(lambda: len(tools.keys) == 2)
            faults.let_go()
            await clock.advance(timedelta(seconds=1))
            active_meanwhile = worker.active
            tools.let_go.set()
            run = await node.ended(run_id)

    assert (active_meanwhile, run.status, run.epoch) == (1, "succeeded", 2)


async def test_a_hint_delivered_twice_executes_the_run_once(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    run_id = await node.created()
    [delivery] = await node.api.queue.lease(worker_module.SELF, limit=1, duration=timedelta(seconds=1))
    await node.api.queue.enqueue(ACME, delivery.body)
    await node.api.queue.release(worker_module.SELF, delivery)

    async with node.worker(model(scripted([calls("add"), "once"])), tools.port(clock)):
        run = await node.ended(run_id)

    assert (run.epoch, tools.keys) == (1, [f"{run_id}:2"])
    assert (await node.api.queue.depth(ACME)).ready == 0


async def test_a_leaving_worker_hands_its_runs_back_to_others(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    talk = model(scripted([calls("slow"), "done"]))
    async with node.worker(talk, tools.port(clock)) as leaving:
        run_id = await node.created()
        await until(tools.begun.is_set)
        await leaving.drain(timedelta(0))
        handed_back = await node.run_state.load(ACME, run_id)  # type: ignore[arg-type]  # a str of the API

    tools.let_go.set()
    async with node.worker(talk, tools.port(clock)):
        run = await node.ended(run_id)

    assert handed_back.status == "queued"
    assert (run.status, run.recoveries, run.epoch) == ("succeeded", 0, 2)


async def test_a_leaving_worker_lets_its_runs_finish_within_the_grace(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(model(scripted([calls("slow"), "done"])), tools.port(clock)) as leaving:
        run_id = await node.created()
        await until(tools.begun.is_set)
        async with anyio.create_task_group() as group:
            group.start_soon(leaving.drain, timedelta(seconds=30))
            tools.let_go.set()
        run = await node.ended(run_id)

    assert (run.status, run.epoch) == ("succeeded", 1)


async def test_a_worker_that_cannot_renew_stops_its_runs_without_another_write(
    clock: ManualClock, tools: Toolbox
) -> None:
    cut = anyio.Event()

    class Severed:
        """A run store that the worker can't reach once `cut` is set."""

        def __init__(self, port: Any) -> None:
            self._port = port

        def __getattr__(self, name: str) -> Any:
            return getattr(self._port, name)

        async def renew(self, *arguments: Any) -> Any:
            if cut.is_set():
                raise Unavailable("cut off")
            return await self._port.renew(*arguments)

    talk = model(scripted([calls("slow"), "never said"]))
    async with (
        stack_a(clock=clock, wrap=lambda name, port: Severed(port) if name == "run_state" else port) as node,
        node.worker(talk, tools.port(clock)) as severed,
    ):
        first_id = severed.id
        run_id = await node.created()
        await until(tools.begun.is_set)
        await until_told(node, clock, run_id, "tool.requested")
        before = await log_length(node, run_id)
        cut.set()
        await takeover(clock)
        await until(lambda: severed.active == 0)
        after = await log_length(node, run_id)

        assert not severed.holds_lease
        assert severed.id != first_id
    assert tools.cancelled == 1
    assert after == before


async def test_two_workers_share_the_runs_and_each_runs_once(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        return Message(role="assistant", content="done") if request.messages[-1].role == "tool" else calls("add")

    async with (
        node.worker(model(rule), tools.port(clock), concurrency=2),
        node.worker(model(rule), tools.port(clock), concurrency=2),
    ):
        ids = [await node.created() for _ in range(20)]
        runs = [await node.ended(run_id) for run_id in ids]

    assert {(run.status, run.epoch) for run in runs} == {("succeeded", 1)}
    assert len(tools.keys) == len(set(tools.keys)) == 20


async def test_a_stream_closes_when_the_callers_token_is_revoked(node: StackA, clock: ManualClock) -> None:
    run_id = await node.created()
    closed = anyio.Event()

    async def follow() -> None:
        await node.get(f"/v1/runs/{run_id}/events")
        closed.set()

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await clock.advance(timedelta(seconds=2))
        still_open = not closed.is_set()
        node.tokens.revoked.add("acme")
        with anyio.fail_after(5):
            while not closed.is_set():
                await clock.advance(timedelta(seconds=1))

    assert still_open


async def log_length(node: StackA, run_id: str) -> int:
    return (await node.run_state.load(ACME, run_id)).last_sequence  # type: ignore[arg-type]  # a str of the API


class Choosy:
    """A run store that refuses appends with `error` for as long as `refusing` says so."""

    def __init__(self, port: Any, error: Exception, refusing: Callable[[Change], bool]) -> None:
        self._port = port
        self._error = error
        self._refusing = refusing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Any:
        if self._refusing(change):
            raise self._error
        return await self._port.append(auth, run_id, epoch, change)


def tells_of_a_model(change: Change) -> bool:
    return any(event.type == "model.completed" for event in change.events) and change.status is None


async def test_a_reply_that_the_store_will_not_take_fails_the_run_at_once(clock: ManualClock, tools: Toolbox) -> None:
    asked = 0

    def rule(_auth: AuthContext, _request: ChatRequest) -> Message:
        nonlocal asked
        asked += 1
        return calls("send")

    def wrap(name: str, port: Any) -> Any:
        return Choosy(port, InvalidArgument("can't be stored"), tells_of_a_model) if name == "run_state" else port

    async with stack_a(clock=clock, wrap=wrap) as node, node.worker(model(rule), tools.port(clock)):
        run = await node.ended(await node.created())

    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.code, asked) == ("internal", 1)


async def test_a_run_that_keeps_meeting_trouble_is_given_up_as_poison(clock: ManualClock, tools: Toolbox) -> None:
    def wrap(name: str, port: Any) -> Any:
        return Choosy(port, Unavailable("too slow"), tells_of_a_model) if name == "run_state" else port

    async with (
        stack_a(clock=clock, wrap=wrap) as node,
        node.worker(model(lambda _auth, _request: calls("send")), tools.port(clock)),
    ):
        run = await node.ended(await node.created())

    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.code, run.recoveries) == ("poison", 6)


async def test_a_store_that_is_away_during_a_model_call_is_not_the_models_failure(
    clock: ManualClock, tools: Toolbox
) -> None:
    away = True
    begun = anyio.Event()
    answer = anyio.Event()

    class Slow(InprocModel):
        async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
            begun.set()
            await answer.wait()
            return await super().chat(auth, request)

    def wrap(name: str, port: Any) -> Any:
        return Choosy(port, Unavailable("away"), lambda _: away) if name == "run_state" else port

    async with (
        stack_a(clock=clock, wrap=wrap) as node,
        node.worker(Slow(InprocModelConfig(chat_models=("m",)), scripted(["said"])), tools.port(clock)),
    ):
        run_id = await node.created()
        await until(begun.is_set)
        await clock.advance(execute_module.TELL_WITHIN)
        away = False
        answer.set()
        run = await node.ended(run_id)

    assert (run.status, run.output) == ("succeeded", {"text": "said"})


async def test_a_full_tenants_runs_wait_while_others_go_on_and_start_when_one_ends(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    await node.entitle(ACME, Entitlements(max_active_runs=1))
    async with node.worker(model(slow_then_done), tools.port(clock)):
        mine = [await node.created() for _ in range(3)]
        await until(lambda: len(tools.keys) == 1)
        theirs = await node.created("globex")
        await until(lambda: len(tools.keys) == 2)
        tools.let_go.set()
        runs = [await ended_in_time(node, clock, run_id) for run_id in mine]
        runs.append(await node.ended(theirs, "globex"))

    assert tools.most_together == 2
    assert [(run.status, run.epoch) for run in runs] == [("succeeded", 1)] * 4


async def test_a_hint_of_a_full_tenant_is_put_aside_and_comes_back(tools: Toolbox, clock: ManualClock) -> None:
    class Unaware(inproc_queue.InprocQueue):
        """Knows of no tenant's limits."""

        leases = 0

        def _room(self, _tenant: TenantId) -> int:
            return 1_000

        def _take(self, message: inproc_queue.Message, until: datetime) -> Delivery:
            self.leases += 1
            return super()._take(message, until)

    unaware: list[Unaware] = []

    def wrap(name: str, port: Any) -> Any:  # any port of the node
        if name != "queue":
            return port
        unaware.append(Unaware(port._store, clock))
        return unaware[0]

    async with stack_a(clock=clock, wrap=wrap) as node:
        await node.entitle(ACME, Entitlements(max_active_runs=1))
        async with node.worker(model(slow_then_done), tools.port(clock)):
            mine = [await node.created() for _ in range(3)]
            await until(lambda: unaware[0].leases == 3)
            for _ in range(10):
                await clock.advance(worker_module.ROOM_AFTER)
            leases, together = unaware[0].leases, tools.together
            tools.let_go.set()
            for run_id in mine:
                await ended_in_time(node, clock, run_id)

    # Both hints that wait came back each time, and no more often.
    assert together == 1
    assert 3 < leases <= 3 + 2 * 10
