"""Runs of a worker that died are taken over in time, however much else there is to do."""

from datetime import timedelta

import anyio
import pytest

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools, PythonTool
from conformance.clock import ManualClock
from conformance.people import ACME, NODE
from ports.context import AuthContext
from ports.ids import RunId, WorkerId
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.run_state import Step
from ports.tool import ToolPort, ToolSpec
from stack_a.lease import LEASE
from stack_a.worker import SWEEP_EVERY, SWEEP_JITTER
from tests.support.stack_a import StackA, stack_a

pytestmark = pytest.mark.anyio

CALL = timedelta(seconds=1)
SECOND = timedelta(seconds=1)
NOTHING: dict[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
SLOW = ToolSpec(name="slow", description="slow", input_schema=NOTHING, effect="pure", timeout=timedelta(minutes=1))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def one_call_each(_auth: AuthContext, request: ChatRequest) -> Message:
    if request.messages[-1].role == "tool":
        return Message(role="assistant", content="done")
    return Message(role="assistant", tool_calls=(ToolRequest(id="call_0", name="slow", arguments="{}"),))


def a_second_each(clock: ManualClock) -> ToolPort:
    async def wait(_auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        await clock.sleep(CALL)
        return {}

    return InprocTools([PythonTool(spec=SLOW, act=wait)], clock)


async def held_by_a_dead_worker(node: StackA, count: int) -> list[RunId]:
    dead = WorkerId("wrk_dead")
    await node.run_state.renew(NODE, dead, LEASE)
    lost = []
    for _ in range(count):
        run_id = RunId(await node.created())
        [hint] = await node.api.queue.lease(NODE, limit=1, duration=SECOND)
        await node.run_state.claim(ACME, run_id, dead)
        await node.api.queue.ack(NODE, hint)
        lost.append(run_id)
    return lost


@pytest.mark.parametrize("count", [1, 6])
async def test_a_worker_with_no_end_of_hints_takes_over_a_dead_workers_runs_first(
    clock: ManualClock, count: int
) -> None:
    # What it has in hand ends first; then those runs, one after the other.
    within = LEASE + max(SWEEP_JITTER) * SWEEP_EVERY + (1 + count) * CALL
    async with stack_a(clock=clock) as node:
        lost = await held_by_a_dead_worker(node, count)
        backlog = [RunId(await node.created()) for _ in range(60)]
        model = InprocModel(InprocModelConfig(chat_models=("m",)), one_call_each)
        async with node.worker(model, a_second_each(clock), concurrency=1):
            with anyio.fail_after(20):
                for _ in range(round(within / SECOND)):
                    await clock.advance(SECOND)

            taken = [await node.run_state.load(ACME, run_id) for run_id in lost]
            last = await node.run_state.load(ACME, backlog[-1])

    assert last.status == "queued"
    assert [(run.epoch, run.recoveries) for run in taken] == [(2, 1)] * count


async def test_what_a_taken_over_run_calls_is_in_the_store_before_it_is_called(clock: ManualClock) -> None:
    """It may be what its worker died of: then nothing that is written later is written at all."""
    found: list[list[Step]] = []

    async def look(auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        found.append([*await node.run_state.steps(auth, RunId(key.partition(":")[0]))])
        return {}

    async with stack_a(clock=clock) as node:
        await held_by_a_dead_worker(node, 1)
        tools = InprocTools([PythonTool(spec=SLOW, act=look)], clock)
        async with node.worker(InprocModel(InprocModelConfig(chat_models=("m",)), one_call_each), tools):
            with anyio.fail_after(20):
                while not found:
                    await clock.advance(SECOND)

    [steps] = found
    assert [(step.n, step.name, step.status) for step in steps] == [(1, "m", "completed"), (2, "slow", "started")]
