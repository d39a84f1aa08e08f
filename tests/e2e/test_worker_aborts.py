"""When a run ends before its model call does, the gateway hears of it; when only its worker leaves, the call goes on."""

from collections.abc import AsyncIterator
from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.model import ChatRequest, Message
from ports.tool import ToolPort
from stack_a.lease import RENEW_EVERY
from stack_a.runs.execute import TELL_WITHIN
from tests.support.stack_a import StackA, stack_a

pytestmark = pytest.mark.anyio

SERVED = InprocModelConfig(chat_models=("m",))


class Slow:
    """A backend that answers once it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.ended_early = 0
        self.begun = anyio.Event()
        self.let_go = anyio.Event()

    async def rule(self, _auth: AuthContext, _request: ChatRequest) -> Message:
        self.calls += 1
        self.begun.set()
        try:
            await self.let_go.wait()
        except BaseException:
            self.ended_early += 1
            raise
        return Message(role="assistant", content="at last")


class Deaf(InprocModel):
    """Can't be told to stop."""

    async def abort(self, auth: AuthContext, step_key: str) -> None:
        raise Unavailable(f"{auth.tenant} {step_key}")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def node(clock: ManualClock) -> AsyncIterator[StackA]:
    async with stack_a(clock=clock) as made:
        yield made


@pytest.fixture
def slow() -> Slow:
    return Slow()


def no_tools(clock: ManualClock) -> ToolPort:
    return InprocTools([], clock)


async def begun(slow: Slow) -> None:
    with anyio.fail_after(10):
        await slow.begun.wait()


async def settled() -> None:
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


async def test_cancelling_a_run_ends_its_model_call(node: StackA, slow: Slow, clock: ManualClock) -> None:
    async with node.worker(InprocModel(SERVED, slow.rule), no_tools(clock)):
        run_id = await node.created()
        await begun(slow)
        await node.cancel(run_id)
        await clock.advance(RENEW_EVERY)
        run = await node.ended(run_id)
        await settled()

        assert run.status == "cancelled"
        assert slow.ended_early == 1


async def test_a_deadline_ends_the_model_call(node: StackA, slow: Slow, clock: ManualClock) -> None:
    async with node.worker(InprocModel(SERVED, slow.rule), no_tools(clock)):
        run_id = await node.created(deadline_s=10)
        await begun(slow)
        await clock.advance(timedelta(seconds=10))
        run = await node.ended(run_id)
        await settled()

        assert run.error is not None
        assert run.error.code == "run_timeout"
        assert slow.ended_early == 1


async def test_a_call_that_a_lost_worker_left_behind_is_ended_by_the_one_that_ends_the_run(
    node: StackA, slow: Slow, clock: ManualClock
) -> None:
    model = InprocModel(SERVED, slow.rule)
    async with node.worker(model, no_tools(clock)):
        run_id = await node.created()
        await begun(slow)
        # By then the store knows of the call.
        await clock.advance(TELL_WITHIN)
        await settled()
    await node.cancel(run_id)
    went_on = slow.ended_early == 0

    async with node.worker(model, no_tools(clock)):
        while (await node.run_state.load(ACME, run_id)).status != "cancelled":  # type: ignore[arg-type]  # a str of the API
            await clock.advance(timedelta(seconds=1))
        await settled()

    assert went_on
    assert (slow.calls, slow.ended_early) == (1, 1)


async def test_a_worker_that_leaves_lets_the_call_go_on_and_the_next_one_gets_its_reply(
    node: StackA, slow: Slow, clock: ManualClock
) -> None:
    model = InprocModel(SERVED, slow.rule)
    async with node.worker(model, no_tools(clock)) as leaving:
        run_id = await node.created()
        await begun(slow)
        await leaving.drain(timedelta(0))

    slow.let_go.set()
    async with node.worker(model, no_tools(clock)):
        run = await node.ended(run_id)

    assert (run.status, run.output) == ("succeeded", {"text": "at last"})
    assert (slow.calls, slow.ended_early) == (1, 0)


async def test_a_gateway_that_cannot_be_told_does_not_keep_a_run_from_ending(
    node: StackA, slow: Slow, clock: ManualClock
) -> None:
    async with node.worker(Deaf(SERVED, slow.rule), no_tools(clock)):
        run_id = await node.created()
        await begun(slow)
        await node.cancel(run_id)
        await clock.advance(RENEW_EVERY)
        run = await node.ended(run_id)

    assert run.status == "cancelled"
