"""One run of the driver: load, faults, calm, reconciliation."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from msgspec import Struct

from ports.ids import minted
from tests.faults import phases, reconcile
from tests.faults.chaos import Chaos, Fault
from tests.faults.clients import Clients
from tests.faults.ledger import RECONNECTS, Ledger
from tests.faults.reconcile import ENDS_WITHIN_S, OPEN, Record, record
from tests.faults.rig import WORKERS, Rig, rig
from tests.faults.witness import ask, install

LONGEST: Final = 2
"""Times what was asked for: so long may a run take on a machine that is too busy to have R6 see enough in time."""

_OCCUPIED: Final = 4
"""Runs of a kind among two workers: one would have to be unlucky to have none. All of them fit into one."""


class Plan(Struct, frozen=True, kw_only=True):
    chaos_s: float
    gap_s: tuple[float, float]
    """Between two faults."""
    stopped_s: float
    """How long a worker stands still: longer than its lease."""
    stalled_s: float
    """How long PostgreSQL stands still."""
    together: bool
    """Whether PostgreSQL stands still while the worker does, instead of before."""
    clients: int = 8
    burst: int = 50
    races: int = 500
    """Cancels that race the end of their run."""
    followed: int = 200
    """Runs whose readers come back `RECONNECTS` times while faults last."""
    prolonged_s: float
    """How long faults go on at most until that many were."""
    occupied_s: float = 75
    """How long the calls take that the stopped worker leaves: another is still at them when it comes back, and writes."""
    read_again: int = 200
    """Runs whose events are read once more when all is over."""


SHORT: Final = Plan(
    chaos_s=9,
    gap_s=(0.3, 1.2),
    stopped_s=26,
    stalled_s=8,
    occupied_s=12,
    together=True,
    prolonged_s=60,
    clients=4,
    burst=20,
    races=30,
    followed=5,
    read_again=30,
)


def long(minutes: float) -> Plan:
    """A worker's three leases and the stall take two minutes of it."""
    return Plan(
        chaos_s=max(30.0, minutes * 60 - 135),
        gap_s=(2, 8),
        stopped_s=75,
        stalled_s=30,
        together=False,
        prolonged_s=minutes * 60 * (LONGEST - 1),
    )


class Outcome(Struct, frozen=True, kw_only=True):
    seed: int
    records: list[Record]
    faults: list[Fault]
    refusals: dict[str, int]


async def drive(plan: Plan, seed: int, say: Callable[[str], None]) -> Outcome:
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(rig(drawn(seed, "proxies")))
        await install(made.superuser)
        ledger = Ledger()
        clients = Clients(made.stack_a, made.token(), ledger, drawn(seed, "clients"))
        stack.push_async_callback(clients.close)
        chaos = Chaos(made, drawn(seed, "faults"))
        say("the node is ready; load begins")
        load = [asyncio.create_task(clients.work()) for _ in range(plan.clients)]
        load.append(asyncio.create_task(clients.race(plan.races)))
        stack.push_async_callback(_end, load)
        await asyncio.sleep(1.5)

        began = time.monotonic()
        say(f"chaos for {plan.chaos_s:.0f} s")
        bursts = asyncio.create_task(_bursts(chaos, clients, plan, began + plan.chaos_s))
        await chaos.reign(began + plan.chaos_s, gap=plan.gap_s)
        prolonged = await until_enough(ledger, plan, partial(chaos.reign, gap=plan.gap_s), say)
        await bursts
        await made.until_ready()
        stopped = await _stopped(made, clients, plan, say) if plan.together else None
        say(f"PostgreSQL stands still for {plan.stalled_s:.0f} s")
        spared = WORKERS[:1] if plan.together else ()
        stall = await phases.stalled_database(made, clients, plan.stalled_s, except_for=spared)
        if stopped is None:
            stopped = await _stopped(made, clients, plan, say)
        remaining = plan.stopped_s - (await _database_now(made) - stopped.since)
        await asyncio.sleep(max(0.0, remaining))
        took_over = await phases.taken_over(made, stopped)
        clients.stop()
        made.resume(stopped.name)
        say("all faults are over; waiting for the runs to end")
        await asyncio.gather(*load)
        await made.until_ready()
        settled = await _settled(made, clients)
        await _read_again(clients, ledger, plan.read_again, drawn(seed, "read again"))

        say("reconciling")
        fenced = sum(phases.fenced(made, name) for name in WORKERS)
        fenced_themselves = sum(phases.fenced_itself(made, name) for name in WORKERS)
        records = [
            await reconcile.promised_runs_end(made.superuser, ledger, settled_s=settled),
            await reconcile.steps_are_recorded_once(made.superuser, made.sink),
            await reconcile.model_calls_are_paid_once(made.superuser, made.upstream, made.disturbed, taken_over=1),
            await reconcile.nothing_is_written_by_the_stale(
                made.superuser,
                took_over,
                held=len(stopped.held),
                stopped_s=plan.stopped_s,
                stale_writes_refused=fenced,
                workers_fenced_themselves=fenced_themselves,
            ),
            await reconcile.events_have_no_gaps(
                made.superuser, ledger, races=plan.races, followed=plan.followed, prolonged_s=prolonged
            ),
            await reconcile.one_run_per_key(made.superuser, ledger),
            stall,
            record("exits", {"unexpected": len(made.unexpected)}, faults=len(chaos.done), examples=made.unexpected[:5]),
        ]
        return Outcome(seed=seed, records=records, faults=chaos.done, refusals=ledger.refusals)


def drawn(seed: int, what: str) -> random.Random:
    """Choices of one kind, the same for a seed however many of another kind are made meanwhile."""
    return random.Random(f"{seed} {what}")  # noqa: S311 - a seed to repeat, not a secret


async def _stopped(made: Rig, clients: Clients, plan: Plan, say: Callable[[str], None]) -> phases.Stopped:
    """A worker that stands still with calls of a tool and of the model in its hands: else another moment is chosen."""
    while True:
        acting = await clients.occupy(_OCCUPIED, seconds=plan.occupied_s)
        thinking = await clients.occupy(_OCCUPIED, seconds=plan.occupied_s, thinking=True)
        # Time to be claimed.
        await asyncio.sleep(1)
        say(f"{WORKERS[0]} stands still for longer than its lease")
        stopped = await phases.stop_worker(made, WORKERS[0])
        if stopped.has_one_of(acting) and stopped.has_one_of(thinking):
            return stopped
        made.resume(WORKERS[0])
        for run_id in (*acting, *thinking):
            await clients.cancel(run_id)


async def until_enough(
    ledger: Ledger,
    plan: Plan,
    more_faults: Callable[[float], Awaitable[None]],
    say: Callable[[str], None],
    *,
    now: Callable[[], float] = time.monotonic,
) -> float:
    """More faults while R6 has seen too few runs followed, for `plan.prolonged_s` at most. How long that took."""
    began = now()
    end = began + plan.prolonged_s
    if missing := max(0, plan.followed - ledger.followed):
        say(
            f"R6 wants {plan.followed} runs followed with {RECONNECTS} reconnects each, and lacks {missing}: faults go on "
            f"until it has them, for {plan.prolonged_s:.0f} s at most"
        )
    while ledger.followed < plan.followed and now() < end:
        await more_faults(min(now() + 2 * plan.gap_s[1], end))
    if missing:
        say(f"it has {ledger.followed} after {now() - began:.0f} s more")
    return now() - began


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _database_now(made: Rig) -> float:
    [row] = await ask(made.superuser, "SELECT extract(epoch FROM clock_timestamp())::float8 AS now")
    found: float = row["now"]
    return found


async def _bursts(chaos: Chaos, clients: Clients, plan: Plan, until: float) -> None:
    """R7: many at once with one key, and the API killed at about the moment it has committed and not yet answered."""
    while time.monotonic() < until:
        burst = asyncio.create_task(clients.burst(plan.burst))
        await asyncio.sleep(0.05)
        chaos.kill("stack-a")
        await burst
        await asyncio.sleep(min(20.0, max(0.0, until - time.monotonic())))


async def _settled(made: Rig, clients: Clients) -> float:
    """Seconds until no run is open. What waits for an operator is cancelled by one."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) <= ENDS_WITHIN_S:
        rows = await ask(made.superuser, "SELECT id, status FROM runs WHERE status = ANY($1)", list(OPEN))
        if not rows:
            return passed
        for row in rows:
            if row["status"] == "needs_operator":
                await clients.cancel(minted("run", row["id"]))
        await asyncio.sleep(0.3)
    return passed


async def _read_again(clients: Clients, ledger: Ledger, count: int, draw: random.Random) -> None:
    """The whole log of some runs, by way of random reconnects, when it can't change any more."""
    chosen = draw.sample(sorted(ledger.acked), min(count, len(ledger.acked)))
    for start in range(0, len(chosen), 10):
        await asyncio.gather(*(clients.follow(run_id, seconds=30) for run_id in chosen[start : start + 10]))
