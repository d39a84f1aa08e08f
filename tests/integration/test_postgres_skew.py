"""R19: workers whose clocks are wrong by minutes hold no run twice, and end none before its time."""

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Final

import anyio
import msgspec
import pytest

from adapters.system_clock import SystemClock
from conformance.people import ACME
from ports.run_state import MAX_PAGE, RunFilter
from ports.tenant import Entitlements
from tests.faults.reconcile import record
from tests.support.postgres import fetch
from tests.support.worker_node import Node, open_node

PATIENCE_S: Final = 60
RUNS: Final = 60
WRONG_BY: Final = (timedelta(minutes=-10), timedelta(0), timedelta(minutes=10))
"""An agent's runs may take 10 minutes: by the last of these clocks they are over when they begin."""


class SkewedClock(SystemClock):
    def __init__(self, wrong_by: timedelta) -> None:
        self._wrong_by = wrong_by

    def now(self) -> datetime:
        return super().now() + self._wrong_by


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_node() as node:
        yield node


@pytest.mark.anyio
async def test_workers_with_wrong_clocks_share_the_work_as_others_do(node: Node) -> None:
    await node.entitle(ACME, Entitlements())
    node.gate.set()

    with anyio.fail_after(PATIENCE_S):
        async with AsyncExitStack() as workers:
            for wrong_by in WRONG_BY:
                await workers.enter_async_context(node.worker(concurrency=4, clock=SkewedClock(wrong_by)))
            created = [await node.create(ACME) for _ in range(RUNS)]
            for run in created:
                await node.ended(ACME, run)

    runs = (await node.runs.list_runs(ACME, RunFilter(), limit=MAX_PAGE)).items
    claims = await fetch(
        node.database.admin, "SELECT run_id FROM run_events WHERE type = 'run.started' GROUP BY 1 HAVING count(*) > 1"
    )
    found = record("R19", {"double_claims": len(claims)}, runs=len(runs))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    assert found.ok, found
    assert {(run.status, run.epoch, run.recoveries) for run in runs} == {("succeeded", 1, 0)}
    assert (len(runs), claims) == (RUNS, [])
