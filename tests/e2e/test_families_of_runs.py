"""Runs and the runs they made, when workers die, calls are lost, and somebody ends one of them: none waits for ever."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conformance.clock import ManualClock
from conformance.faults import Faults, Kind
from conformance.people import ACME
from ports.ids import RunId
from ports.run_state import RunStatus
from stack_a.lease import RENEW_EVERY
from tests.support.stack_a import StackA, stack_a
from tests.support.teams import (
    BOSS,
    HAND,
    HELP,
    deep,
    family,
    handing,
    member,
    parts,
    statuses,
    steps_of,
    team,
    three_deep,
    turn,
    until_is,
    until_made,
)  # fmt: skip
from tests.support.worker import Toolbox, ended_in_time, log_of, until

pytestmark = pytest.mark.anyio

SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tools() -> Toolbox:
    return Toolbox()


@pytest.fixture
def faults() -> Faults:
    """Of the run store."""
    return Faults()


@pytest.fixture
async def node(clock: ManualClock, faults: Faults) -> AsyncIterator[StackA]:
    def wrap(name: str, port: Any) -> Any:
        return faults.around(port) if name == "run_state" else port

    async with stack_a(clock=clock, wrap=wrap) as made:
        await team(made, member(BOSS, HAND), member(HAND, HELP), member(HELP))
        yield made


def one_child() -> Any:
    return parts(handing("x"), "thanks", hand=(turn(("slow", {})), "done"))


async def status_of(node: StackA, run_id: str) -> RunStatus:
    return (await node.run_state.load(ACME, RunId(run_id))).status


async def held_up(faults: Faults) -> None:
    with anyio.fail_after(5):
        await faults.held()


async def check_it_goes_on(node: StackA, tools: Toolbox, clock: ManualClock, run_id: str) -> None:
    """Under another worker, to its end, with one child."""
    tools.let_go.set()
    async with node.worker(one_child(), tools.port(clock)):
        run = await ended_in_time(node, clock, run_id)

    assert run.status == "succeeded"
    assert [child.status for child in await family(node, run_id)] == ["succeeded"]


@pytest.mark.parametrize("method", ["create", "append", "wake", "claim"])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_call_that_is_not_answered_neither_loses_nor_doubles_a_child(
    tools: Toolbox, clock: ManualClock, method: str, kind: Kind
) -> None:
    faults = Faults()
    async with stack_a(
        clock=clock, wrap=lambda name, port: faults.around(port) if name == "run_state" else port
    ) as node:
        await team(node, member(BOSS, HAND), member(HAND))
        run_id = await node.created()
        # An outage of the store is outlived, however long it takes to make the child.
        faults.inject(method, kind, times=8 if method == "create" else 2)

        await check_it_goes_on(node, tools, clock, run_id)


async def test_a_worker_killed_after_the_intent_leaves_the_child_to_the_next(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    run_id = await node.created()
    faults.inject("create", "before")
    async with node.worker(one_child(), tools.port(clock)):
        with anyio.fail_after(5):
            while ("agent", "started") not in await steps_of(node, run_id):
                await anyio.lowlevel.checkpoint()
    assert await family(node, run_id) == []

    await check_it_goes_on(node, tools, clock, run_id)


async def test_a_worker_killed_after_it_made_the_child_leaves_it_to_be_found(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    run_id = await node.created()
    faults.inject("create", "late")
    async with node.worker(one_child(), tools.port(clock)):
        await held_up(faults)
    assert await status_of(node, run_id) == "running"
    assert len(await family(node, run_id)) == 1

    await check_it_goes_on(node, tools, clock, run_id)


async def test_a_worker_killed_after_its_run_began_to_wait_leaves_it_waiting(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    run_id = await node.created()
    faults.inject("wake", "late")
    async with node.worker(one_child(), tools.port(clock)):
        await held_up(faults)
    assert await status_of(node, run_id) == "waiting"

    await check_it_goes_on(node, tools, clock, run_id)


async def test_a_worker_killed_after_the_child_ended_leaves_the_parent_to_the_sweep(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    run_id = await node.created()
    async with node.worker(one_child(), tools.port(clock)):
        await until_is(node, clock, run_id, "waiting")
        await until(tools.begun.is_set)
        faults.inject("append", "late")
        tools.let_go.set()
        await held_up(faults)
    [child] = await family(node, run_id)
    assert (child.status, await status_of(node, run_id)) == ("succeeded", "waiting")

    await check_it_goes_on(node, tools, clock, run_id)


async def test_a_worker_killed_after_it_woke_the_parent_leaves_it_to_the_sweep(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    run_id = await node.created()
    async with node.worker(one_child(), tools.port(clock)):
        await until_is(node, clock, run_id, "waiting")
        await until(tools.begun.is_set)
        faults.inject("wake", "late")
        tools.let_go.set()
        await held_up(faults)
    assert await status_of(node, run_id) == "queued"

    await check_it_goes_on(node, tools, clock, run_id)


async def test_a_child_that_ended_unheard_is_heard_by_the_sweep(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    async with node.worker(one_child(), tools.port(clock)):
        run_id = await node.created()
        await until_is(node, clock, run_id, "waiting")
        await until(tools.begun.is_set)
        faults.inject("wake", "before")
        [child] = await family(node, run_id)
        tools.let_go.set()
        with anyio.fail_after(5):
            while await status_of(node, child.id) != "succeeded":
                await anyio.lowlevel.checkpoint()
        unheard = await status_of(node, run_id)
        run = await ended_in_time(node, clock, run_id)

    assert (unheard, run.status) == ("waiting", "succeeded")


async def test_cancelling_a_run_cancels_all_below_it_at_once(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(three_deep(), tools.port(clock)):
        run_id, child, grandchild = await deep(node, clock, tools)
        cancelled, asked_at = await node.cancel(run_id), clock.now()
        below = await status_of(node, child.id)
        await ended_in_time(node, clock, grandchild.id)

    assert cancelled.json()["status"] == below == await status_of(node, grandchild.id) == "cancelled"
    assert clock.now() - asked_at <= RENEW_EVERY + SECOND
    assert tools.cancelled == 1
    assert (await steps_of(node, run_id))[1] == ("agent", "unknown")
    assert [event["event"] for event in await log_of(node, run_id)][-3:] == [
        "agent.completed", "step.completed", "run.cancelled",
    ]  # fmt: skip


async def test_cancelling_a_child_tells_its_parent(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    async with node.worker(three_deep(), tools.port(clock)):
        run_id, child, grandchild = await deep(node, clock, tools)
        await node.cancel(child.id)
        ended = await statuses(node, clock, run_id, child.id, grandchild.id)

    assert ended == ["succeeded", "cancelled", "cancelled"]


async def test_a_cancel_that_nobody_below_was_told_of_is_told_by_the_sweep(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    async with node.worker(three_deep(), tools.port(clock)):
        run_id, child, grandchild = await deep(node, clock, tools)
        faults.inject("list_runs", "before")
        await node.cancel(run_id)
        untold = await status_of(node, child.id)
        ended = await statuses(node, clock, run_id, child.id, grandchild.id)

    assert untold == "waiting"
    assert ended == ["cancelled"] * 3


async def test_a_run_cancelled_just_before_it_waits_does_not_wait(
    node: StackA, tools: Toolbox, clock: ManualClock, faults: Faults
) -> None:
    async with node.worker(one_child(), tools.port(clock)):
        run_id = await node.created()
        faults.inject("create", "late")
        await held_up(faults)
        await node.cancel(run_id)
        faults.let_go()
        [child] = await until_made(node, run_id)
        ended = await statuses(node, clock, run_id, child.id)

    assert ended == ["cancelled", "cancelled"]


async def test_no_run_outlives_the_deadline_of_the_one_it_works_for(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(three_deep(), tools.port(clock)):
        run_id = await node.created(deadline_s=20)
        _, child, grandchild = await deep(node, clock, tools, run_id)
        await statuses(node, clock, run_id, child.id, grandchild.id)

    ended = [await node.run_state.load(ACME, RunId(one)) for one in (run_id, child.id, grandchild.id)]
    assert {run.deadline_at for run in ended} == {ended[0].created_at + 20 * SECOND}
    assert [run.error.code for run in ended if run.error is not None] == ["run_timeout"] * 3
    assert clock.now() <= ended[0].created_at + 25 * SECOND


async def test_a_deadline_ends_a_run_whose_child_waits_for_a_person(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    sending = parts(handing("x"), "thanks", hand=(turn(("send", {})), "done"))
    run_id = await node.created(deadline_s=60)
    async with node.worker(sending, tools.port(clock)):
        await until_is(node, clock, run_id, "waiting")
        await until(tools.begun.is_set)
    [child] = await family(node, run_id)
    async with node.worker(sending, tools.port(clock)):
        await until_is(node, clock, child.id, "needs_operator")
        run = await ended_in_time(node, clock, run_id)
        ended = await statuses(node, clock, child.id)

    assert (run.error and run.error.code, ended) == ("run_timeout", ["cancelled"])


async def test_a_cancelled_parent_is_not_retried_over_a_child_that_may_have_acted(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(three_deep(), tools.port(clock)):
        run_id, _, _ = await deep(node, clock, tools)
        await node.cancel(run_id)
        refused = await node.verb(run_id, "retry")

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
