"""A node's own choice of adapters: what a tool remembers is committed with the result of its step."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from adapters.system_clock import SystemClock
from conformance.factories import intent, new_run, result
from conformance.people import ACME, NODE
from deploy.roots.tools import egress_of_a_node, tools_of_a_node
from deploy.roots.wiring import Choice, open_ports
from observability.instrument import instrument
from observability.metrics import Metrics
from ports.ids import WorkerId
from ports.run_state import Change, step_key
from ports.tool import ToolCall
from tests.support.postgres import borrow, give_back


@pytest.mark.anyio
async def test_on_a_node_memory_put_is_transactional_and_its_write_is_made_by_the_run_store() -> None:
    clone, metrics = await borrow(), Metrics()
    database = Choice(adapter="postgres", config={"dsn": clone.app})
    choices = {"run_state": database, "memory": database, "tool": tools_of_a_node("")}
    choices |= {"tenant": database, "egress": egress_of_a_node("")}
    worker = WorkerId("wrk_wiring")

    needs = {"run_state": None, "tool": None, "memory": None}
    async with open_ports(
        choices, needs, clock=SystemClock(), wrap=lambda name, port: instrument(name, port, metrics.port_call)
    ) as ports:
        await ports["run_state"].renew(NODE, worker, timedelta(minutes=1))
        run = (await ports["run_state"].create(ACME, new_run())).run
        run = await ports["run_state"].claim(ACME, run.id, worker)
        call = ToolCall(name="memory_put", arguments={"text": "tea with milk"}, key=step_key(run.id, 1))
        done = await ports["tool"].invoke(ACME, call, timeout=timedelta(seconds=5))
        before = await ports["memory"].search(ACME, "tea")
        put = replace(intent(1), name="memory_put", effect="transactional")
        change = Change(steps=(put, replace(result(1), output=done.output)), writes=done.writes)
        await ports["run_state"].append(ACME, run.id, run.epoch, change)
        after = await ports["memory"].search(ACME, "tea")
    await give_back(clone)

    assert before == ()
    assert [match.item.value for match in after] == ["tea with milk"]
