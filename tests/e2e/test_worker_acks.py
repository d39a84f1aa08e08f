"""When a worker acknowledges the hint that it took a run by."""

from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from adapters.inproc.model import scripted
from conformance.clock import ManualClock
from conformance.people import NODE
from deploy.roots.stack_a_worker import ack_of
from ports.errors import InvalidArgument
from ports.queue import Depth
from stack_a.hints import HINT_LEASE
from tests.support.ports import free_ports
from tests.support.real_stacks import Provider, real_stacks
from tests.support.stack_a import StackA, stack_a
from tests.support.worker import Toolbox, calls, ended_in_time, model, slow_then_done, takeover, until, until_status

pytestmark = pytest.mark.anyio

NOTHING = Depth(ready=0, leased=0)
HELD = Depth(ready=0, leased=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tools() -> Toolbox:
    return Toolbox()


async def depth(node: StackA) -> Depth:
    return await node.api.queue.depth(NODE)


async def pass_time(clock: ManualClock, duration: timedelta) -> None:
    for _ in range(round(duration / SECOND)):
        await clock.advance(SECOND)


async def test_by_default_a_hint_is_acknowledged_once_its_run_is_claimed(clock: ManualClock, tools: Toolbox) -> None:
    async with stack_a(clock=clock) as node, node.worker(model(slow_then_done), tools.port(clock)):
        await node.created()
        await until(tools.begun.is_set)

        assert await depth(node) == NOTHING


async def test_with_complete_a_hint_is_held_until_its_run_has_ended(clock: ManualClock, tools: Toolbox) -> None:
    async with stack_a(clock=clock) as node, node.worker(model(slow_then_done), tools.port(clock), ack="complete"):
        run_id = await node.created()
        await until(tools.begun.is_set)
        while_begun = await depth(node)
        await pass_time(clock, 3 * HINT_LEASE)
        much_later = await depth(node)
        tools.let_go.set()
        run = await ended_in_time(node, clock, run_id)
        await clock.advance(SECOND)

        assert (while_begun, much_later, await depth(node)) == (HELD, HELD, NOTHING)
    assert (run.status, run.epoch, len(tools.keys)) == ("succeeded", 1, 1)


async def test_with_complete_the_hint_of_a_run_that_is_parked_is_acknowledged(
    clock: ManualClock, tools: Toolbox
) -> None:
    async with stack_a(clock=clock) as node:
        async with node.worker(model(scripted([calls("send"), "done"])), tools.port(clock), ack="complete"):
            run_id = await node.created()
            await until(tools.begun.is_set)
        async with node.worker(model(slow_then_done), tools.port(clock), ack="complete"):
            await takeover(clock)
            await until_status(node, run_id, "needs_operator")
            await pass_time(clock, HINT_LEASE)

            assert await depth(node) == NOTHING


async def test_with_complete_a_run_that_is_handed_back_takes_its_hint_along(clock: ManualClock, tools: Toolbox) -> None:
    async with (
        stack_a(clock=clock) as node,
        node.worker(model(slow_then_done), tools.port(clock), ack="complete") as leaving,
    ):
        run_id = await node.created()
        await until(tools.begun.is_set)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(leaving.drain, timedelta(0))
                await clock.advance(SECOND)
        run = await until_status(node, run_id, "queued")
        [delivery] = await node.api.queue.lease(NODE, limit=10, duration=SECOND)

    assert (run.recoveries, delivery.attempt) == (0, 2)


async def test_with_complete_the_hint_of_a_worker_that_was_killed_is_held_by_whoever_goes_on(
    clock: ManualClock, tools: Toolbox
) -> None:
    async with stack_a(clock=clock) as node:
        async with node.worker(model(slow_then_done), tools.port(clock), ack="complete"):
            run_id = await node.created()
            await until(tools.begun.is_set)
        async with node.worker(model(slow_then_done), tools.port(clock), ack="complete"):
            # Redelivered before the dead worker's lease has ended, and not acknowledged for that.
            await pass_time(clock, HINT_LEASE + SECOND)
            while_dead = await depth(node)
            await takeover(clock)
            await until(lambda: len(tools.keys) == 2)
            await pass_time(clock, 2 * HINT_LEASE)
            taken_over = await depth(node)
            tools.let_go.set()
            run = await ended_in_time(node, clock, run_id)
            await pass_time(clock, 2 * HINT_LEASE)

            assert await depth(node) == NOTHING
    assert [one.ready + one.leased for one in (while_dead, taken_over)] == [1, 1]
    assert (run.status, run.epoch, run.recoveries) == ("succeeded", 2, 1)


async def test_a_real_worker_that_is_killed_leaves_its_hint_to_the_next_one(tmp_path: Path) -> None:
    provider = Provider()
    settings = {"AGENTOS_QUEUE_ACK": "complete"}
    async with real_stacks(tmp_path, free_ports(2), provider=provider, worker_environment=settings) as stacks:
        await stacks.gateway.start()
        await stacks.worker.start()
        run_id = await stacks.created("hold me")
        with anyio.fail_after(60):
            while provider.total < 1:  # noqa: ASYNC110 - another process asks
                await anyio.sleep(0.02)
        in_hand = await stacks.queue.depth(NODE)
        await stacks.worker.kill()
        await stacks.let_leases_lapse()
        left = await stacks.queue.depth(NODE)
        provider.let_go.set()
        await stacks.worker.start()
        with anyio.fail_after(60):
            while (run := await stacks.run(run_id)).status != "succeeded":  # noqa: ASYNC110 - another process ends it
                await anyio.sleep(0.05)
            while await stacks.queue.depth(NODE) != NOTHING:  # noqa: ASYNC110 - the same
                await anyio.sleep(0.05)

    assert (in_hand, left) == (HELD, Depth(ready=1, leased=0))
    assert (run.epoch, run.recoveries, provider.total) == (2, 1, 1)


@pytest.mark.parametrize("word", ["accept", "complete"])
def test_the_setting_takes_both_words(word: str) -> None:
    assert ack_of(word) == word


def test_the_setting_takes_no_other_word() -> None:
    with pytest.raises(InvalidArgument, match="AGENTOS_QUEUE_ACK is 'late'; it may be accept or complete"):
        ack_of("late")
