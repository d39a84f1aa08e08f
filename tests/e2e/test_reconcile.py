"""A call of an unsafe tool that was interrupted, or left it open whether it acted: what is made of what the tool tells."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.context import AuthContext
from ports.errors import Internal, NotFound, Unavailable, Unsupported
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.run_state import Run, RunStatus
from ports.tool import NOT_SENT, OUTCOME_UNKNOWN, ToolCapabilities, ToolResult
from stack_a.lease import LEASE
from tests.support.inproc_tools import tool
from tests.support.stack_a import StackA, stack_a

pytestmark = pytest.mark.anyio


class Told(InprocTools):
    """`send` is unsafe and comes back only with its `error`. `answer` is what it then says that it did."""

    def __init__(self, clock: ManualClock) -> None:
        self.sent = 0
        self.asked: list[str] = []
        self.answer: Callable[[], Awaitable[ToolResult | None]]
        self.error: Exception | None = None
        send = tool("send", self._send, effect="unsafe")
        in_a_minute = dataclasses.replace(send, spec=replace(send.spec, timeout=timedelta(minutes=1)))
        super().__init__([in_a_minute], clock)

    @property
    def capabilities(self) -> ToolCapabilities:
        return ToolCapabilities(reconcile=True)

    async def _send(self, _auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        self.sent += 1
        if self.error is not None:
            raise self.error
        await anyio.Event().wait()

    async def reconcile(self, auth: AuthContext, name: str, key: str) -> ToolResult | None:
        self.asked.append(f"{auth.tenant} {name} {key}")
        return await self.answer()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def node(clock: ManualClock) -> AsyncIterator[StackA]:
    async with stack_a(clock=clock) as made:
        yield made


@pytest.fixture
def tools(clock: ManualClock) -> Told:
    return Told(clock)


def sends_once(_auth: AuthContext, request: ChatRequest) -> Message:
    if any(message.role == "tool" for message in request.messages):
        return Message(role="assistant", content=f"heard {request.messages[-1].content}")
    return Message(role="assistant", tool_calls=(ToolRequest(id="c", name="send", arguments="{}"),))


MODEL = InprocModel(InprocModelConfig(chat_models=("m",)), sends_once)


async def interrupted(node: StackA, tools: Told, clock: ManualClock) -> str:
    """A run whose worker was lost while `send` was at it, and whose lease has ended."""
    async with node.worker(MODEL, tools):
        run_id = await node.created()
        with anyio.fail_after(5):
            while tools.sent == 0:
                await anyio.lowlevel.checkpoint()
    await clock.advance(LEASE)
    return run_id


async def until(node: StackA, run_id: str, status: RunStatus, clock: ManualClock) -> Run:
    with anyio.fail_after(5):
        while (run := await node.run_state.load(ACME, cast("Any", run_id))).status != status:
            await clock.advance(timedelta(milliseconds=500))
            await anyio.lowlevel.checkpoint()
    return run


async def test_a_call_that_took_effect_is_not_made_again_and_the_run_goes_on(
    node: StackA, tools: Told, clock: ManualClock
) -> None:
    tools.answer = it_did
    run_id = await interrupted(node, tools, clock)

    async with node.worker(MODEL, tools):
        run = await until(node, run_id, "succeeded", clock)

    assert run.output == {"text": 'heard {"sent":true}'}
    assert tools.sent == 1
    assert tools.asked == [f"{ACME.tenant} send {run_id}:2"]


async def test_what_the_tool_does_not_know_an_operator_is_asked(node: StackA, tools: Told, clock: ManualClock) -> None:
    tools.answer = it_did_not
    run_id = await interrupted(node, tools, clock)

    async with node.worker(MODEL, tools):
        run = await until(node, run_id, "needs_operator", clock)

    assert run.recoveries == 1
    assert tools.sent == 1


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("it exited with 1", code="tool_failed"),
        Unavailable("it does not answer"),
        Internal("it said something else", code="tool_bad_output"),
        Unsupported("it keeps no record"),
        NotFound("there is no such tool any more"),
    ],
    ids=lambda error: error.code,
)
async def test_a_tool_that_can_not_tell_leaves_it_to_an_operator(
    node: StackA, tools: Told, clock: ManualClock, error: Exception
) -> None:
    async def fail() -> ToolResult:
        raise error

    tools.answer = fail
    run_id = await interrupted(node, tools, clock)

    async with node.worker(MODEL, tools):
        run = await until(node, run_id, "needs_operator", clock)

    assert run.recoveries == 1
    assert tools.sent == 1


async def it_did_not() -> None:
    return None


async def it_did() -> ToolResult:
    return ToolResult(output={"sent": True})


LEFT_OPEN = [
    Unavailable("the server does not answer"),
    Unavailable("the connection broke", code="tool_failed", details=OUTCOME_UNKNOWN),
    Unavailable("the server was too slow", code="upstream_timeout"),
    Internal("a bug met the answer"),
]


async def test_an_unsafe_call_over_its_time_is_not_taken_for_one_that_failed(
    node: StackA, tools: Told, clock: ManualClock
) -> None:
    tools.answer = it_did_not

    async with node.worker(MODEL, tools):
        run = await until(node, await node.created(), "needs_operator", clock)

    [_, step] = await node.run_state.steps(ACME, run.id)
    assert (step.status, step.error and step.error.code) == ("unknown", "outcome_unknown")
    assert step.error is not None
    assert step.error.message == "send took longer than 60 s; whether it took effect is unknown"
    assert tools.asked == [f"{ACME.tenant} send {run.id}:2"]
    assert (run.epoch, tools.sent) == (1, 1)


@pytest.mark.parametrize("error", LEFT_OPEN, ids=lambda error: error.code)
async def test_an_unsafe_call_whose_error_leaves_it_open_needs_an_operator(
    node: StackA, tools: Told, clock: ManualClock, error: Exception
) -> None:
    tools.answer, tools.error = it_did_not, error

    async with node.worker(MODEL, tools):
        run = await until(node, await node.created(), "needs_operator", clock)

    assert (run.epoch, tools.sent) == (1, 1)


@pytest.mark.parametrize("error", LEFT_OPEN, ids=lambda error: error.code)
async def test_an_unsafe_call_whose_error_leaves_it_open_goes_on_where_the_tool_can_tell(
    node: StackA, tools: Told, clock: ManualClock, error: Exception
) -> None:
    tools.answer, tools.error = it_did, error

    async with node.worker(MODEL, tools):
        run = await until(node, await node.created(), "succeeded", clock)

    assert (run.output, run.epoch, tools.sent) == ({"text": 'heard {"sent":true}'}, 1, 1)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("there is no connection", details=NOT_SENT),
        Unavailable("it says that it failed", code="tool_failed"),
        Internal("its answer is not JSON", code="tool_bad_output"),
    ],
    ids=lambda error: error.code,
)
async def test_an_unsafe_call_that_was_not_begun_or_was_answered_has_failed(
    node: StackA, tools: Told, clock: ManualClock, error: Exception
) -> None:
    tools.error = error

    async with node.worker(MODEL, tools):
        run = await until(node, await node.created(), "succeeded", clock)

    [_, step, _] = await node.run_state.steps(ACME, run.id)
    assert (step.status, tools.sent, tools.asked) == ("failed", 1, [])


async def test_a_cancel_reaches_a_run_whose_tool_is_being_asked(node: StackA, tools: Told, clock: ManualClock) -> None:
    begun = anyio.Event()

    async def think() -> ToolResult:
        begun.set()
        await anyio.Event().wait()
        raise AssertionError("nobody sets it")

    tools.answer = think
    run_id = await interrupted(node, tools, clock)

    async with node.worker(MODEL, tools):
        with anyio.fail_after(5):
            while not begun.is_set():
                await clock.advance(timedelta(milliseconds=500))
                await anyio.lowlevel.checkpoint()
        await node.cancel(run_id)
        run = await until(node, run_id, "cancelled", clock)

    steps = (await node.get(f"/v1/runs/{run_id}/steps")).json()["items"]
    assert run.error is None
    assert [step["status"] for step in steps] == ["completed", "unknown"]
