"""R3: what was acknowledged is there after a power cut, and a server that doesn't wait for its disk is found out.

The record of each measurement is printed: `pytest -rP` shows it.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import msgspec
import pytest

from adapters.postgres import run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import STEP_STARTED, intent, new_run
from conformance.people import ACME, NODE, PLATFORM
from conformance.run_state_claims import ANN, LEASE
from ports.adapter import Given
from ports.errors import AgentOSError, NotFound
from ports.ids import RunId
from ports.run_state import Change, RunStatePort
from ports.tenant import Entitlements
from tests.faults.reconcile import Record, record
from tests.support.disks import PowerCutDisk, may_cut_power
from tests.support.postgres import execute
from tests.support.postgres_node import Node

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not may_cut_power(), reason="a disk whose power is cut needs root, ext4 and the right to mount"),
]

CUTS: Final = 5
CLIENTS: Final = 4
STEPS: Final = 5
"""That each run journals."""
FEWEST: Final = 40
MOST: Final = 400
"""Acknowledgements between two cuts."""
DISK_BYTES: Final = 512 * 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "postgres")
    made.start()
    made.set_up()
    # So that nothing gets to the disk by chance.
    asyncio.run(execute(made.server.dsn("postgres"), "ALTER SYSTEM SET wal_writer_delay = '10s'"))
    yield made
    made.end()


@pytest.fixture
def disk(node: Node) -> Iterator[PowerCutDisk]:
    node.stop()
    made = PowerCutDisk(node.server.layout.data, size_bytes=DISK_BYTES)
    node.start()
    yield made
    node.stop()
    node.process = None
    made.end()


class Promises:
    """What was acknowledged: the steps of each run, which were none when it was created."""

    def __init__(self) -> None:
        self.steps: dict[RunId, int] = {}
        self.count = 0

    def keep(self, run: RunId, steps: int) -> None:
        self.steps[run] = steps
        self.count += 1

    async def broken(self, state: RunStatePort) -> tuple[int, int]:
        """Runs and steps that are not there."""
        runs = steps = 0
        for run, promised in self.steps.items():
            try:
                found = len(await state.steps(ACME, run))
            except NotFound:
                runs, found = runs + 1, 0
            steps += max(0, promised - found)
        return runs, steps


async def work(state: RunStatePort, promises: Promises, told: Callable[[], None]) -> None:
    """Creates runs and journals their steps until the store fails."""
    while True:
        run = (await state.create(ACME, new_run())).run
        promises.keep(run.id, 0)
        told()
        held = await state.claim(ACME, run.id, ANN)
        for number in range(1, STEPS + 1):
            await state.append(ACME, run.id, held.epoch, Change(steps=(intent(number),), events=(STEP_STARTED,)))
            promises.keep(run.id, number)
            told()


async def measured(node: Node, disk: PowerCutDisk, cuts: int) -> Record:
    """In the moment of an acknowledgement, with those of other clients under way."""
    promises, chance = Promises(), random.Random(3)  # noqa: S311 - a seed, so that it can be repeated
    config, given = PostgresConfig(dsn=node.server.dsn("ao_app")), Given(clock=SystemClock())
    generous = Entitlements(runs_per_minute=1_000_000, max_queued_runs=10_000_000, max_active_runs=1_000)
    async with tenant.SPEC.open(PostgresConfig(dsn=node.server.dsn("ao_control")), given) as tenants:
        await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=generous)
    runs = steps = made = 0
    for _ in range(cuts):
        last = promises.count + chance.randint(FEWEST, MOST)

        def told(last: int = last) -> None:
            nonlocal made
            if promises.count == last:
                disk.cut()
                made += 1

        async def client(state: RunStatePort) -> None:
            with suppress(AgentOSError):
                await work(state, promises, told)

        async with run_state.SPEC.open(config, given) as state:
            await state.renew(NODE, ANN, LEASE)
            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for _ in range(CLIENTS):
                        group.start_soon(client, state)
        node.kill()
        disk.restore()
        node.start()
        async with run_state.SPEC.open(config, given) as state:
            lost = await promises.broken(state)
        runs, steps = runs + lost[0], steps + lost[1]
    found = record(
        "R3",
        {"runs_lost_after_power_cut": runs, "steps_lost_after_power_cut": steps, "cuts_that_never_came": cuts - made},
        cuts=made,
        acknowledged=promises.count,
    )
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return found


async def test_what_was_acknowledged_is_there_after_each_power_cut(node: Node, disk: PowerCutDisk) -> None:
    found = await measured(node, disk, CUTS)

    assert found.ok, found


async def test_a_server_that_does_not_wait_for_its_disk_loses_what_it_acknowledged(
    node: Node, disk: PowerCutDisk
) -> None:
    await execute(node.server.dsn("postgres"), "ALTER ROLE ao_app SET synchronous_commit = off")

    found = await measured(node, disk, 1)

    assert found.gates["runs_lost_after_power_cut"] + found.gates["steps_lost_after_power_cut"] > 0, found
