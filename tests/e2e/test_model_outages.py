"""Runs whose model is away, on a loop whose time passes by itself."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools
from conformance.people import ACME
from ports.agent import AgentLimits
from ports.context import AuthContext
from ports.errors import AgentOSError, ResourceExhausted, Unavailable
from ports.ids import RunId
from ports.model import ChatRequest, Message
from ports.run_state import TERMINAL, Run
from tests.support.instant_loop import InstantClock, InstantLoop
from tests.support.stack_a import AGENT, StackA, stack_a

pytestmark = [pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": InstantLoop}


@pytest.fixture
async def node() -> AsyncIterator[StackA]:
    async with stack_a(clock=InstantClock()) as made:
        await made.api.agent.publish(ACME, replace(AGENT, tools=(), limits=AgentLimits(deadline_s=600)))
        yield made


class Away:
    """A model that fails until a moment, counted from its first call, and says when it was asked."""

    def __init__(self, error: AgentOSError, *, seconds: float) -> None:
        self._error = error
        self._seconds = seconds
        self.asked: list[float] = []

    def port(self) -> InprocModel:
        return InprocModel(InprocModelConfig(chat_models=("m",)), self._answer)

    def _answer(self, _auth: AuthContext, _request: ChatRequest) -> Message:
        self.asked.append(asyncio.get_running_loop().time())
        if self.asked[-1] - self.asked[0] < self._seconds:
            raise self._error
        return Message(role="assistant", content="back")


async def ended(node: StackA, model: Away, *, deadline_s: int = 600) -> Run:
    async with node.worker(model.port(), InprocTools([], node.clock)):
        run_id = RunId(await node.created(deadline_s=deadline_s))
        while (run := await node.run_state.load(ACME, run_id)).status not in TERMINAL:
            await node.clock.sleep(timedelta(milliseconds=500))
    return run


async def test_a_run_outlives_an_outage_within_its_deadline(node: StackA) -> None:
    model = Away(Unavailable("restarting"), seconds=540)

    run = await ended(node, model)

    waits = [later - earlier for earlier, later in zip(model.asked, model.asked[1:], strict=False)]
    assert (run.status, run.output, run.epoch) == ("succeeded", {"text": "back"}, 1)
    assert max(waits) < 5.1
    assert len(waits) < 160


async def test_an_outage_beyond_the_deadline_ends_the_run_at_it_and_is_named(node: StackA) -> None:
    model = Away(Unavailable("Stack B can't be reached"), seconds=540)

    run = await ended(node, model, deadline_s=60)

    assert run.status == "failed"
    assert run.error is not None
    assert run.finished_at is not None
    assert run.error.code == "run_timeout"
    assert "Stack B can't be reached" in run.error.message
    assert timedelta(seconds=60) <= run.finished_at - run.created_at < timedelta(seconds=61)


@pytest.mark.parametrize("code", ["upstream_error", "upstream_timeout"])
async def test_a_provider_that_keeps_failing_fails_the_run(node: StackA, code: str) -> None:
    model = Away(Unavailable("the provider failed", code=code), seconds=540)

    run = await ended(node, model)

    assert run.error is not None
    assert (run.status, run.error.code, len(model.asked)) == ("failed", code, 6)


async def test_a_refusal_is_asked_again_when_it_said_and_a_few_times_only(node: StackA) -> None:
    refusal = ResourceExhausted("held by others", code="budget_in_flight", retry_after=timedelta(seconds=20))
    passing, lasting = Away(refusal, seconds=50), Away(refusal, seconds=540)

    outlived, failed = await ended(node, passing), await ended(node, lasting)

    assert (outlived.status, [round(at - passing.asked[0]) for at in passing.asked]) == ("succeeded", [0, 20, 40, 60])
    assert failed.error is not None
    assert (failed.status, failed.error.code, len(lasting.asked)) == ("failed", "budget_in_flight", 6)
