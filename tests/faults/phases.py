"""The two faults that need watching while they last: a database that stands still, and a worker that misses its lease."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import httpx

from ports.ids import minted
from stack_a.lease import RENEW_EVERY
from tests.bench.figures import percentile
from tests.faults.clients import Clients
from tests.faults.reconcile import Record, record
from tests.faults.rig import DATABASE, Rig
from tests.faults.witness import ask

_ASK_EVERY_S: Final = 0.2
_TAKEOVER_S: Final = 20.0
"""Beyond the time that a worker stands still in any case: what comes too late shall be seen to."""
_RECOVERY_S: Final = 20.0
_ANSWER_S: Final = 5.5
"""A request begun so long before the database goes on must have been refused by then."""


@dataclass
class Stalled:
    seconds: list[float] = field(default_factory=list)
    """How long each request took."""
    not_refused: list[str] = field(default_factory=list)
    unhealthy: int = 0
    unready_after_s: float | None = None


async def stalled_database(rig: Rig, clients: Clients, seconds: float, *, except_for: Collection[str] = ()) -> Record:
    """R17: with PostgreSQL standing still, everything is refused soon and may be tried again; then it heals by itself."""
    found = Stalled()
    rig.disturb(seconds)
    with rig.standing_still(DATABASE):
        began = time.monotonic()
        asking = [asyncio.create_task(_probe(rig, found, began, seconds))]
        while (passed := time.monotonic() - began) < seconds:
            # What is asked at the very end would be answered by the database that goes on.
            if passed < seconds - _ANSWER_S:
                asking.append(asyncio.create_task(_ask_for_a_run(clients, found)))
            await asyncio.sleep(_ASK_EVERY_S)
    resumed = time.monotonic()
    await asyncio.gather(*asking)
    recovered = await _recovered(rig, clients, resumed, except_for)
    p99 = percentile(found.seconds, 0.99) if found.seconds else 0.0
    return record(
        "R17",
        {
            "not_refused_retryably": len(found.not_refused),
            "p99_s": round(p99, 2),
            "healthz_bad": found.unhealthy,
            "readyz_503_after_s": round(found.unready_after_s, 2) if found.unready_after_s is not None else seconds,
            "recovery_s": round(recovered, 2),
        },
        limits={"p99_s": 5.0, "readyz_503_after_s": 5.0, "recovery_s": 10.0},
        requests=len(found.seconds),
        stalled_s=seconds,
        examples=found.not_refused[:5],
    )


async def _ask_for_a_run(clients: Clients, found: Stalled) -> None:
    began = time.monotonic()
    try:
        response = await clients.new()
    except httpx.HTTPError as error:
        found.not_refused.append(type(error).__name__)
    else:
        retryable = response.status_code == 503 and response.json()["error"]["retryable"]
        if not retryable or not response.headers.get("retry-after", "").isdigit():
            found.not_refused.append(str(response.status_code))
    found.seconds.append(time.monotonic() - began)


async def _probe(rig: Rig, found: Stalled, began: float, seconds: float) -> None:
    while time.monotonic() - began < seconds:
        try:
            live = await rig.http.get(f"{rig.stack_a}/healthz", timeout=3)
            found.unhealthy += live.status_code != 200
            if found.unready_after_s is None:
                ready = await rig.http.get(f"{rig.stack_a}/readyz", timeout=6)
                if ready.status_code == 503:
                    found.unready_after_s = time.monotonic() - began
        except httpx.HTTPError:
            found.unhealthy += 1
        await asyncio.sleep(_ASK_EVERY_S)


async def _recovered(rig: Rig, clients: Clients, since: float, except_for: Collection[str]) -> float:
    """Seconds until every service is ready and a run is accepted; the bound when they are not."""
    while (passed := time.monotonic() - since) < _RECOVERY_S:
        try:
            accepted = (await clients.new()).status_code == 202
        except httpx.HTTPError:
            accepted = False
        if accepted and all([await rig.ready(name) for name in rig.parts if name not in except_for]):
            return time.monotonic() - since
        await asyncio.sleep(_ASK_EVERY_S)
    return passed


@dataclass
class Stopped:
    """A worker that stands still, and the runs it held."""

    name: str
    held: dict[str, int] = field(default_factory=dict)
    """Run → epoch at that moment."""
    since: float = 0.0
    """By the database's clock."""

    def has_one_of(self, runs: Collection[str]) -> bool:
        return not self.held.keys().isdisjoint(runs)


async def stop_worker(rig: Rig, name: str) -> Stopped:
    """SIGSTOP; then find out which worker that was, in the database's eyes: the one that does not renew."""
    rig.stop(name)
    stopped = Stopped(name=name)
    [row] = await ask(rig.superuser, "SELECT extract(epoch FROM clock_timestamp())::float8 AS now")
    stopped.since = row["now"]
    before = await ask(
        rig.superuser,
        """
        SELECT r.id, r.epoch, w.id AS worker, w.lease_until
        FROM runs r JOIN workers w ON w.id = r.worker_id
        WHERE r.status = 'running'
        """,
    )
    await asyncio.sleep(2.5 * RENEW_EVERY.total_seconds())
    leases = {row["id"]: row["lease_until"] for row in await ask(rig.superuser, "SELECT id, lease_until FROM workers")}
    stopped.held = {
        minted("run", row["id"]): row["epoch"] for row in before if leases.get(row["worker"]) == row["lease_until"]
    }
    return stopped


async def taken_over(rig: Rig, stopped: Stopped) -> list[float]:
    """Like `takeovers`, as soon as every run was taken over, or it has taken too long."""
    end = time.monotonic() + _TAKEOVER_S
    while True:
        found = await takeovers(rig, stopped)
        if len(found) == len(stopped.held) or time.monotonic() > end:
            return found
        await asyncio.sleep(_ASK_EVERY_S)


async def takeovers(rig: Rig, stopped: Stopped) -> list[float]:
    """Seconds from the stop to the next claim, of each run the stopped worker held."""
    rows = await ask(
        rig.superuser,
        "SELECT run_id, epoch, extract(epoch FROM at)::float8 AS at FROM faults.claims WHERE epoch > 1",
    )
    return [
        row["at"] - stopped.since for row in rows if stopped.held.get(minted("run", row["run_id"])) == row["epoch"] - 1
    ]


def fenced(rig: Rig, name: str) -> int:
    """Stale writes of this service that were refused, by its own log."""
    return rig.parts[name].log.read_bytes().count(b"run.fenced")


def fenced_itself(rig: Rig, name: str) -> int:
    """How often this worker gave up its runs unwritten because it could not renew, by its own log."""
    return rig.parts[name].log.read_bytes().count(b"worker.fenced_itself")
