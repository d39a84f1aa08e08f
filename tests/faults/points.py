"""R4: a worker is killed at an exact point of a run, many times at each, and no step is recorded twice for it.

Leases of workers that are dead are made to end at once: waiting for them would be all that the time is spent on.
"""

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, get_args

import asyncpg
import msgspec

from tests.faults import reconcile
from tests.faults.clients import Clients
from tests.faults.driver import Outcome
from tests.faults.ledger import Ledger
from tests.faults.mortal_worker import DEATHS, Death, Point, Sentence
from tests.faults.reconcile import OPEN, Record, record
from tests.faults.rig import Rig, rig
from tests.faults.witness import install

POINTS: Final[tuple[Point, ...]] = get_args(Point)
_TURNS: Final = (("look", "note"), ("send",))
"""Three model calls, and a tool of each effect class. What may be called twice has to be recorded in the same way."""
_MOST: Final = {"intent": 4, "call": 6, "result": 4, "ack": 1}
"""Of each kind in a run: the facts of consecutive steps share a commit."""
_CALL_S: Final = 0.1
"""Of each call: longer than an intent may wait for company, so that it is committed first."""
_AT_ONCE: Final = 8
_END_S: Final = 300.0
"""For one kill and what follows it, at most, however many others are under way."""


async def kill_at_points(times: int, seed: int, say: Callable[[str], None]) -> Outcome:
    """`times` kills at each of `POINTS`, one in a run."""
    draw = random.Random(seed)  # noqa: S311 - a seed to repeat, not a secret
    sentences = [
        Sentence(point=point, nth=draw.randint(1, _MOST[point.partition(".")[0]]))
        for point in POINTS
        for _ in range(times)
    ]
    draw.shuffle(sentences)
    async with AsyncExitStack() as stack:
        deaths = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-deaths-"))) / "deaths"
        deaths.touch()
        # One run at a time: a kill shall meet no other.
        made = await stack.enter_async_context(
            rig(draw, worker="tests.faults.mortal_worker", environment={DEATHS: str(deaths)}, concurrency=1)
        )
        await install(made.superuser)
        ledger = Ledger()
        clients = Clients(made.stack_a, made.token(), ledger, draw)
        stack.push_async_callback(clients.close)
        burying = asyncio.create_task(_bury(made, deaths))
        stack.callback(burying.cancel)
        say(f"the node is ready; {times} kills at each of {len(POINTS)} points")
        began = time.monotonic()
        waiting = iter(sentences)
        await asyncio.gather(*(_condemn(clients, waiting) for _ in range(_AT_ONCE)))
        say("reconciling")
        records = [
            await reconcile.promised_runs_end(made.superuser, ledger),
            _died(deaths, times, time.monotonic() - began),
            await reconcile.steps_are_recorded_once(made.superuser, made.sink, one_kill_each=True),
            await reconcile.model_calls_are_paid_once(made.superuser, made.upstream, made.disturbed),
            await reconcile.events_have_no_gaps(made.superuser, ledger, races=0, followed=0),
        ]
    return Outcome(seed=seed, records=records, faults=[], refusals=ledger.refusals)


async def _condemn(clients: Clients, waiting: Iterator[Sentence]) -> None:
    """One run after the other, each seen to its end."""
    for sentence in waiting:
        key = clients.key()
        plan = {"marker": key, "turns": _TURNS, "seconds": _CALL_S, "die": msgspec.to_builtins(sentence)}
        run_id = await clients.promised(key, msgspec.json.encode({"input": json.dumps(plan)}))
        end = time.monotonic() + _END_S
        while (
            run_id is not None and (status := await clients.status(run_id)) in (None, *OPEN) and time.monotonic() < end
        ):
            if status == "needs_operator":
                await clients.cancel(run_id)
            await asyncio.sleep(0.1)


async def _bury(made: Rig, deaths: Path) -> None:
    """End the lease of each worker that is dead, as time would."""
    connection = await asyncpg.connect(made.superuser)
    try:
        known = 0
        while True:
            found = read_deaths(deaths)
            for death in found[known:]:
                await connection.execute(
                    "UPDATE agentos.workers SET lease_until = clock_timestamp() WHERE id = $1", death.worker
                )
            known = len(found)
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


def read_deaths(path: Path) -> list[Death]:
    return [msgspec.json.decode(line, type=Death) for line in path.read_bytes().splitlines()]


def _died(deaths: Path, times: int, seconds: float) -> Record:
    found = Counter(death.point for death in read_deaths(deaths))
    missing = {point: times - found[point] for point in POINTS if found[point] < times}
    return record(
        "kills",
        {"missing": sum(missing.values())},
        kills=found.total(),
        seconds=round(seconds, 1),
        at=", ".join(f"{point}={found[point]}" for point in POINTS),
        examples=[f"{point} lacks {lacking}" for point, lacking in missing.items()],
    )
