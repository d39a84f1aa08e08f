"""Hints that a crash of the server forgets (they wait for no disk, decision 0019): every acknowledged run ends, and once.

The record is printed: `pytest -rP` shows it.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from typing import Final

import anyio
import msgspec
import psutil
import pytest

from ports.ids import minted
from ports.run_state import TERMINAL
from tests.faults.clients import Clients
from tests.faults.ledger import Ledger
from tests.faults.reconcile import record
from tests.faults.rig import WORKERS, Rig, rig, until_database
from tests.faults.witness import ask

pytestmark = pytest.mark.anyio

SEED: Final = 19
CRASHES: Final = 3
EACH: Final = 20
"""Runs promised before each crash."""
ENDS_WITHIN_S: Final = 60.0
_LOG_WRITER: Final = "SELECT pid, wait_event FROM pg_stat_activity WHERE backend_type = 'walwriter'"
_HINTED: Final = "SELECT convert_from(body, 'UTF8')::json ->> 'run_id' AS run FROM agentos.queue_messages"
_ENDINGS: Final = """
    SELECT r.id, r.status, r.epoch,
        (SELECT count(*) FROM run_events e WHERE e.run_id = r.id AND e.type = 'run.started') AS started,
        (SELECT count(*) FROM run_events e WHERE e.run_id = r.id
            AND e.type IN ('run.completed', 'run.failed', 'run.cancelled')) AS ended
    FROM runs r
"""


async def stop_log_writer(made: Rig) -> None:
    """Stop who writes the log to the disk behind the back of those that don't wait for it; not while it holds a lock."""
    with anyio.fail_after(30):
        while True:
            [writer] = await ask(made.superuser, _LOG_WRITER)
            process = psutil.Process(writer["pid"])
            process.suspend()
            [stopped] = await ask(made.superuser, _LOG_WRITER)
            if stopped["wait_event"] == "WalWriterMain":
                return
            process.resume()


async def crash(made: Rig, clients: Clients) -> int:
    """Kill the server at the moment its clients were promised runs; says how many of the hints of these are gone."""
    await stop_log_writer(made)
    for name in WORKERS:
        made.stop(name)
    before = set(clients.ledger.acked)
    keys = [clients.key() for _ in range(EACH)]
    bodies = [msgspec.json.encode({"input": json.dumps({"marker": key, "turns": [], "seconds": 0})}) for key in keys]
    await asyncio.gather(*(clients.promised(key, body) for key, body in zip(keys, bodies, strict=True)))
    made.kill_database()
    await until_database(made.superuser)
    left = {row["run"] for row in await ask(made.superuser, _HINTED)}
    for name in WORKERS:
        made.resume(name)
    return len(set(clients.ledger.acked) - before - left)


async def settled(made: Rig) -> None:
    with anyio.move_on_after(ENDS_WITHIN_S):
        while await ask(made.superuser, "SELECT 1 FROM runs WHERE status <> ALL($1) LIMIT 1", list(TERMINAL)):  # noqa: ASYNC110 - a server sets no event of ours
            await anyio.sleep(0.2)


async def test_runs_whose_hints_a_crash_of_the_server_forgot_end_once() -> None:
    draw = random.Random(SEED)  # noqa: S311 - a seed to repeat, not a secret
    ledger = Ledger()
    async with rig(draw) as made:
        clients = Clients(made.stack_a, made.token(), ledger, draw)
        lost: list[int] = []
        try:
            for _ in range(CRASHES):
                lost.append(await crash(made, clients))
                await settled(made)
        finally:
            await clients.close()
        rows = await ask(made.superuser, _ENDINGS)

    statuses = Counter(row["status"] for row in rows)
    found = record(
        "R1",
        {
            "lost": len(set(ledger.acked) - {minted("run", row["id"]) for row in rows}),
            "stuck": sum(row["status"] not in TERMINAL for row in rows),
            "started_twice": sum(row["started"] > 1 or row["epoch"] > 1 for row in rows),
            "ended_not_once": sum(row["ended"] != 1 for row in rows),
            "promised_twice": sum(len(runs) > 1 for runs in ledger.answers.values()),
        },
        acked=len(ledger.acked),
        hints_lost=", ".join(str(count) for count in lost),
        ended=", ".join(f"{status}={count}" for status, count in sorted(statuses.items())),
    )
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    assert min(lost) >= 1, "each crash has to forget something, or nothing is shown"
    assert found.ok, found
    assert statuses == {"succeeded": CRASHES * EACH}
