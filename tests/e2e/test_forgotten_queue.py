"""R2: the queue is disposable. All it knows is deleted in the middle of the load, and every run that was accepted ends.

The record is printed: `pytest -rP` shows it.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Final

import anyio
import asyncpg
import msgspec
import pytest

from ports.ids import RunId
from ports.run_state import TERMINAL
from tests.faults.reconcile import record
from tests.support.ports import free_ports
from tests.support.real_stacks import RealStacks, real_stacks

pytestmark = pytest.mark.anyio

CONCURRENCY: Final = 4
WAITING: Final = 20
"""Runs accepted before the provider says a word."""
ROUNDS: Final = 5
EACH: Final = 5
"""Runs between one loss of the queue and the next."""
ENDS_WITHIN_S: Final = 60.0


async def forget(stacks: RealStacks) -> int:
    """Empty every table of the queue, as a lost disk would; says how many hints it held."""
    connection = await asyncpg.connect(stacks.database.superuser)
    try:
        async with connection.transaction():
            tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE tablename LIKE 'queue%'")
            assert {row["tablename"] for row in tables} == {"queue_messages", "queue_turns"}
            lost = await connection.fetch("DELETE FROM agentos.queue_messages RETURNING id")
            await connection.execute("DELETE FROM agentos.queue_turns")
    finally:
        await connection.close()
    return len(lost)


async def ended(stacks: RealStacks, runs: list[RunId]) -> Counter[str]:
    """How the runs stand, as soon as all have ended or it has taken too long."""
    statuses: Counter[str] = Counter()
    with anyio.move_on_after(ENDS_WITHIN_S):
        while statuses.total() < len(runs) or set(statuses) - TERMINAL:
            statuses = Counter([(await stacks.run(run)).status for run in runs])
            await anyio.sleep(0.2)
    return statuses


async def test_runs_end_although_the_queue_forgets_them(tmp_path: Path) -> None:
    environment = {"AGENTOS_WORKER_CONCURRENCY": str(CONCURRENCY)}
    async with real_stacks(tmp_path, free_ports(2), worker_environment=environment) as stacks:
        await stacks.gateway.start()
        await stacks.worker.start()
        runs = [await stacks.created(f"waiting {number}") for number in range(WAITING)]
        with anyio.fail_after(20):
            while stacks.provider.total < CONCURRENCY:  # noqa: ASYNC110 - what is asked is another process
                await anyio.sleep(0.02)
        forgotten = await forget(stacks)
        stacks.provider.let_go.set()
        for turn in range(ROUNDS):
            async with anyio.create_task_group() as group:
                group.start_soon(forget, stacks)
                runs += [await stacks.created(f"turn {turn}, {number}") for number in range(EACH)]
        statuses = await ended(stacks, runs)

    stuck = sum(count for status, count in statuses.items() if status not in TERMINAL)
    found = record(
        "R2",
        {"lost": len(runs) - statuses.total(), "stuck": stuck},
        acked=len(runs),
        times_forgotten=1 + ROUNDS,
        hints_forgotten_at_first=forgotten,
        ended=", ".join(f"{status}={count}" for status, count in sorted(statuses.items())),
    )
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    assert forgotten >= WAITING - 2 * CONCURRENCY
    assert found.ok, found
    assert statuses == {"succeeded": WAITING + ROUNDS * EACH}
