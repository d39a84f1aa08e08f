"""Agents that hand work to each other over PostgreSQL: places, locks and clocks are the database's own here."""

from collections.abc import AsyncIterator
from datetime import timedelta

import anyio
import pytest
from msgspec.structs import replace

from adapters.inproc.model import Rule
from conformance.factories import SUCCEEDED, new_run
from conformance.people import ACME, NODE
from ports.agent import AgentSpec
from ports.ids import AgentId, RunId, WorkerId
from ports.run_state import TERMINAL, Change, NewEvent, Parent, Run, RunFilter
from ports.tenant import Entitlements
from stack_a.runs.family import Family
from tests.support.teams import BOSS, HAND, HELP, errors_heard, handing, heard, member, playing, turn
from tests.support.worker_node import Node, open_node

pytestmark = pytest.mark.anyio

ONE_ACTIVE = Entitlements(max_active_runs=1)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    with anyio.fail_after(60):
        async with open_node() as node:
            yield node


def counting(agent_id: AgentId, *agents: AgentId) -> AgentSpec:
    """Whose only tool is the node's, which waits for the gate."""
    return replace(member(agent_id, *agents), tools=("count",))


async def family(node: Node, run_id: RunId) -> list[Run]:
    page = await node.runs.list_runs(ACME, RunFilter(parent=run_id), limit=200)
    return list(reversed(page.items))


async def team(node: Node, *agents: AgentSpec, entitlements: Entitlements) -> None:
    await node.entitle(ACME, entitlements)
    for agent in agents:
        await node.agents.publish(ACME, agent)


def three_deep() -> Rule:
    return playing(
        {
            BOSS: (handing("x", "y"), "thanks"),
            HAND: (handing("z", to=HELP), "done"),
            HELP: (turn(("count", {})), "helped"),
        }
    )


async def test_a_family_of_runs_needs_one_place(node: Node) -> None:
    await team(node, counting(BOSS, HAND), counting(HAND, HELP), counting(HELP), entitlements=ONE_ACTIVE)
    node.gate.set()

    async with node.worker(concurrency=4, rule=three_deep()):
        run_id = await node.create(ACME, BOSS)
        await node.ended(ACME, run_id)

    run, children = await node.runs.load(ACME, run_id), await family(node, run_id)
    assert (run.status, [child.status for child in children]) == ("succeeded", ["succeeded"] * 2)
    assert [len(await family(node, child.id)) for child in children] == [1, 1]
    assert node.most == {ACME.tenant: 1}
    below = [step.usage.total_tokens for step in await node.runs.steps(ACME, run_id)]
    assert run.usage.total_tokens == sum(below)
    assert below[1] == children[0].usage.total_tokens > 0


async def test_a_chain_of_runs_ends_at_the_depth_limit(node: Node) -> None:
    await team(node, member(BOSS, BOSS), entitlements=Entitlements())
    chain = playing({BOSS: (handing("deeper", to=BOSS), lambda asked: errors_heard(asked) or heard(asked))})

    async with node.worker(concurrency=2, rule=chain):
        run_id = await node.create(ACME, BOSS)
        await node.ended(ACME, run_id)

    depths, line = [], [await node.runs.load(ACME, run_id)]
    while line:
        [run] = line
        depths.append((run.depth, run.status))
        line = await family(node, run.id)
    assert depths == [(depth, "succeeded") for depth in range(6)]


async def test_a_cancelled_family_has_ended_within_seconds(node: Node) -> None:
    await team(node, counting(BOSS, HAND), counting(HAND, HELP), counting(HELP), entitlements=Entitlements())

    async with node.worker(concurrency=4, rule=three_deep()):
        run_id = await node.create(ACME, BOSS)
        await node.until_inside(ACME, 2)
        children = await family(node, run_id)
        grandchildren = [one for child in children for one in await family(node, child.id)]
        with anyio.fail_after(10):
            run = await node.runs.cancel(ACME, run_id, reason="no longer needed")
            await Family(run_state=node.runs, queue=node.queue).ended(ACME, run)
            for one in (run, *children, *grandchildren):
                await node.ended(ACME, one.id)

    ended = [await node.runs.load(ACME, one.id) for one in (run, *children, *grandchildren)]
    assert [one.status for one in ended] == ["cancelled"] * 5
    assert node.inside == {ACME.tenant: 0}


async def test_the_sweep_sees_to_runs_that_were_told_nothing(node: Node) -> None:
    await team(node, counting(BOSS, HAND), counting(HAND), entitlements=Entitlements())
    dead = WorkerId("wrk_dead")
    await node.runs.renew(NODE, dead, timedelta(seconds=30))
    waiting = Change(status="waiting", waits_for="child", events=(NewEvent(type="run.waiting"),))

    async def held(parent: Parent | None = None, agent: AgentId = BOSS) -> Run:
        made = (await node.runs.create(ACME, replace(new_run(agent_id=agent), parent=parent))).run
        return await node.runs.claim(ACME, made.id, dead)

    unheard, over = await held(), await held()
    child = await held(Parent(run_id=unheard.id, step=2, depth=1), HAND)
    orphan = await held(Parent(run_id=over.id, step=2, depth=1), HAND)
    for run, change in ((unheard, waiting), (orphan, waiting), (child, SUCCEEDED), (over, SUCCEEDED)):
        await node.runs.append(ACME, run.id, run.epoch, change)

    async with node.worker(concurrency=2, rule=playing({BOSS: ("went on",)})):
        with anyio.fail_after(15):
            for run in (unheard, orphan):
                await node.ended(ACME, run.id)

    assert (await node.runs.load(ACME, unheard.id)).status in TERMINAL
    assert (await node.runs.load(ACME, orphan.id)).status == "cancelled"
