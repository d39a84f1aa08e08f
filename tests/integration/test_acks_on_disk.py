"""R3: what was acknowledged is on disk. The server itself says how often it waited for the disk.

The record of each measurement is printed: `pytest -rP` shows it.
"""

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import anyio
import asyncpg
import msgspec
import pytest

from adapters.postgres import queue
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.run_state import SPEC
from adapters.system_clock import SystemClock
from conformance.factories import STEP_STARTED, intent, new_run
from conformance.people import ACME, NODE
from conformance.run_state_claims import ANN, LEASE
from ports.adapter import Given
from ports.run_state import Change
from tests.faults.reconcile import Record, record
from tests.support.postgres import execute
from tests.support.postgres_node import Node

CALLS: Final = 100
_DURABLE: Final = ("fsync", "synchronous_commit", "full_page_writes")
_FSYNCS: Final = "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal'"
_OURS: Final = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'ao_app'"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A server with the settings of production; those of other tests don't wait for the disk."""
    made = Node(tmp_path_factory.mktemp("acks") / "postgres")
    made.start()
    made.set_up()
    yield made
    made.end()


async def asked(dsn: str, query: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval(query))
    finally:
        await connection.close()


async def fsyncs(node: Node) -> int:
    """Of the write-ahead log, by every process of the server. What a connection did is counted when it has ended."""
    with anyio.fail_after(10):
        while int(await asked(node.server.dsn("postgres"), _OURS)):  # noqa: ASYNC110 - a server sets no event of ours
            await anyio.sleep(0.02)
    return int(await asked(node.server.dsn("postgres"), _FSYNCS))


async def measured(node: Node) -> Record:
    """One call after the other, so that none can be on disk by the grace of another one's commit."""
    counted = [await fsyncs(node)]
    async with SPEC.open(PostgresConfig(dsn=node.server.dsn("ao_app")), Given(clock=SystemClock())) as state:
        runs = [(await state.create(ACME, new_run())).run.id for _ in range(CALLS)]
    counted.append(await fsyncs(node))
    async with SPEC.open(PostgresConfig(dsn=node.server.dsn("ao_app")), Given(clock=SystemClock())) as state:
        await state.renew(NODE, ANN, LEASE)
        held = await state.claim(ACME, runs[0], ANN)
        for number in range(1, CALLS + 1):
            change = Change(steps=(intent(number),), events=(STEP_STARTED,))
            await state.append(ACME, runs[0], held.epoch, change)
    counted.append(await fsyncs(node))
    creating, appending = (later - before for before, later in pairwise(counted))
    found = record(
        "R3",
        {"creations_not_on_disk": max(0, CALLS - creating), "appends_not_on_disk": max(0, CALLS - appending)},
        calls_of_each=CALLS,
        fsyncs_per_creation=creating / CALLS,
        fsyncs_per_append=appending / CALLS,
        settings=", ".join([f"{name}={await asked(node.server.dsn('ao_app'), f'SHOW {name}')}" for name in _DURABLE]),
    )
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return found


@pytest.mark.anyio
async def test_each_acknowledged_creation_and_append_has_waited_for_the_disk(node: Node) -> None:
    found = await measured(node)

    assert found.ok, found
    assert found.figures["settings"] == "fsync=on, synchronous_commit=on, full_page_writes=on"


@pytest.mark.anyio
async def test_a_server_that_does_not_wait_for_the_disk_is_seen(node: Node) -> None:
    await execute(node.server.dsn("postgres"), "ALTER ROLE ao_app SET synchronous_commit = off")
    try:
        found = await measured(node)
    finally:
        await execute(node.server.dsn("postgres"), "ALTER ROLE ao_app RESET synchronous_commit")

    assert not found.ok
    assert found.gates["creations_not_on_disk"] > CALLS / 2
    assert found.gates["appends_not_on_disk"] > CALLS / 2


@pytest.mark.anyio
async def test_a_hint_waits_for_no_disk(node: Node) -> None:
    """The run it is about is on disk already, and is found without it."""
    before = await fsyncs(node)
    async with queue.SPEC.open(PostgresConfig(dsn=node.server.dsn("ao_app")), Given(clock=SystemClock())) as messages:
        for _ in range(CALLS):
            await messages.enqueue(ACME, b"hint")

    # The server writes its log now and then by itself.
    assert await fsyncs(node) - before < CALLS / 2
