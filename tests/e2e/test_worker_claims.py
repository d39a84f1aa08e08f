"""Claims whose answer comes late or never: who then has the run, and that it is executed once."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, cast

import anyio
import pytest

from adapters.inproc.model import scripted
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.errors import ResourceExhausted, Unavailable
from ports.ids import RunId
from ports.run_state import Run
from stack_a import worker as worker_module
from stack_a.lease import SELF
from stack_a.runs import execute as execute_module
from tests.support.stack_a import stack_a
from tests.support.worker import Toolbox, calls, ended_in_time, model, slow_then_done, takeover, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tools() -> Toolbox:
    return Toolbox()


class Held:
    """A run store whose first claim is made at once and answered when `answer` is set. It takes no renewals while `cut`."""

    def __init__(self, port: Any) -> None:
        self._port = port
        self.cut = False
        self.claimed = anyio.Event()
        self.answer = anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def renew(self, *arguments: Any) -> Any:
        if self.cut:
            raise Unavailable("cut off")
        return await self._port.renew(*arguments)

    async def claim(self, *arguments: Any) -> Any:
        run = await self._port.claim(*arguments)
        if not self.claimed.is_set():
            self.claimed.set()
            await self.answer.wait()
        return run


async def test_a_claim_answered_after_the_worker_fenced_itself_is_left_to_whoever_adopted_it(
    clock: ManualClock, tools: Toolbox
) -> None:
    async with (
        stack_a(clock=clock, wrap=lambda name, port: Held(port) if name == "run_state" else port) as node,
        node.worker(model(slow_then_done), tools.port(clock)) as worker,
    ):
        store, first_id = cast("Held", node.run_state), worker.id
        run_id = await node.created()
        await until(store.claimed.is_set)
        store.cut = True
        await takeover(clock)
        await until(lambda: worker.id != first_id)
        store.cut = False
        await takeover(clock)
        await until(tools.begun.is_set)

        store.answer.set()
        await clock.advance(execute_module.TELL_WITHIN)
        active = worker.active
        # Who adopted it, which is the same worker under its new id, still hears of a cancel.
        await node.cancel(run_id)
        run = await ended_in_time(node, clock, run_id)

    assert (active, run.status, run.epoch, len(tools.keys), tools.cancelled) == (1, "cancelled", 2, 1, 1)


async def test_a_claim_answered_after_a_drain_began_to_hand_back_is_handed_back(
    clock: ManualClock, tools: Toolbox
) -> None:
    async with (
        stack_a(clock=clock, wrap=lambda name, port: Held(port) if name == "run_state" else port) as node,
        node.worker(model(slow_then_done), tools.port(clock)) as leaving,
    ):
        store = cast("Held", node.run_state)
        run_id = await node.created()
        await until(store.claimed.is_set)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(leaving.drain, timedelta(0))
                await clock.advance(timedelta(seconds=1))
                store.answer.set()
        run = await node.run_state.load(ACME, RunId(run_id))

    assert (run.status, run.recoveries, tools.keys) == ("queued", 0, [])


class Answering:
    """A run store whose claims are answered by `answers`, one each and in turn, before they go on as usual."""

    def __init__(self, port: Any, *answers: Callable[[Callable[[], Awaitable[Run]]], Awaitable[Run]]) -> None:
        self._port = port
        self._answers = list(answers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def claim(self, *arguments: Any) -> Run:
        claim = partial(self._port.claim, *arguments)
        return await (self._answers.pop(0)(claim) if self._answers else claim())


async def lost(_claim: Callable[[], Awaitable[Run]]) -> Run:
    raise Unavailable("nobody knows")


async def test_a_claim_made_after_the_tenant_was_said_to_be_full_does_not_strand_the_run(
    clock: ManualClock, tools: Toolbox
) -> None:
    async def full_but_the_one_before_is_made(claim: Callable[[], Awaitable[Run]]) -> Run:
        await claim()
        raise ResourceExhausted("full", code="concurrency_limited")

    def wrap(name: str, port: Any) -> Any:
        return Answering(port, lost, full_but_the_one_before_is_made) if name == "run_state" else port

    async with stack_a(clock=clock, wrap=wrap) as node:
        run_id = await node.created()
        async with node.worker(model(scripted([calls("add"), "found"])), tools.port(clock)):
            run = await ended_in_time(node, clock, run_id)

    assert (run.status, run.epoch) == ("succeeded", 1)


async def test_a_claim_answered_after_another_found_what_it_made_is_not_executed_again(
    clock: ManualClock, tools: Toolbox
) -> None:
    made, answer = anyio.Event(), anyio.Event()

    async def made_and_answered_late(claim: Callable[[], Awaitable[Run]]) -> Run:
        run = await claim()
        made.set()
        await answer.wait()
        return run

    def wrap(name: str, port: Any) -> Any:
        return Answering(port, lost, made_and_answered_late) if name == "run_state" else port

    async with stack_a(clock=clock, wrap=wrap) as node:
        run_id = await node.created()
        # The same hint twice.
        [hint] = await node.api.queue.lease(SELF, limit=1, duration=timedelta(seconds=1))
        await node.api.queue.enqueue(ACME, hint.body)
        await node.api.queue.release(SELF, hint)
        async with node.worker(model(slow_then_done), tools.port(clock)):
            await until(made.is_set)
            await clock.advance(worker_module.RETRY_AFTER)
            await until(tools.begun.is_set)
            answer.set()
            await clock.advance(timedelta(seconds=1))
            begun = len(tools.keys)
            tools.let_go.set()
            run = await ended_in_time(node, clock, run_id)

    assert (begun, run.status, run.epoch) == (1, "succeeded", 1)
