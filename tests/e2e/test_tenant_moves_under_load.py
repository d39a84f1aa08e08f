"""A tenant moves while its runs are created, executed and followed: nothing is lost, twice, stuck or missing.

The move is killed on its way there and on its way back, in each of its phases, and goes on.
"""

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from adapters.postgres import audit
from adapters.postgres.move import FREEZE_S
from adapters.postgres.move_job import Step
from adapters.postgres.move_switch import STANDS_STILL_S
from adapters.postgres.move_tables import SHARED
from adapters.token_auth.issuer import generate_key, load_key
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.audit_check import checked_chains
from deploy.audit_heads import HeadsFile
from deploy.audit_signer import Signer
from observability.metrics import Metrics
from ports.adapter import Given
from ports.audit_rules import Verdict
from ports.errors import Unavailable
from stack_a.app import create_app
from stack_a.deps import ApiDeps
from tests.support.homes import (
    AGENT,
    CLOCK,
    OTHER,
    Homes,
    Killed,
    Ports,
    killed_at,
    open_homes,
    open_ports,
    prompt,
    silent,
)
from tests.support.http_server import served
from tests.support.postgres import fetch
from tests.support.stack_a import Tokens, events_of

pytestmark = pytest.mark.anyio

CLIENTS = 2
AT_ONCE = 3
"""Runs that a client has open."""
PATIENCE_S = 300
TRIES = 3
"""Of a move that the database has taken back."""
REFUSED_S = 5.0
"""From a creation's first refusal to its success: it waits for the switch, 2 s, and comes back after 1 s."""
THERE = ("marked", "guarded", "copied", "caught_up", "frozen")
BACK = ("compared", "written", "left", "directed", "opened")
"""Where the move is killed."""


def api(ports: Ports) -> Any:
    return create_app(
        ApiDeps(
            clock=CLOCK,
            run_state=ports.runs,
            event=ports.events,
            queue=ports.queue,
            agent=ports.agents,
            audit=ports.audit,
            verifier=Tokens(),
            metrics=Metrics(),
        )
    )


@dataclass(eq=False)
class Client:
    """Creates runs and follows each to its end, as one would who was promised something."""

    who: str
    urls: list[str]
    """Of two processes: each request goes to any."""
    random: random.Random
    keys: list[str] = field(default_factory=list)
    acked: dict[str, str] = field(default_factory=dict)
    """Run by key."""
    seen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    refused: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    refused_s: float = 0.0
    room: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(AT_ONCE))

    async def work(self, http: httpx.AsyncClient, done: anyio.Event) -> None:
        async with anyio.create_task_group() as following:
            while not done.is_set():
                await self.room.acquire()
                key = f"{self.who}-{self.random.getrandbits(64):x}"
                self.keys.append(key)
                run = await self._create(http, key)
                self.acked[key] = run
                following.start_soon(self._follow, http, run)

    async def _create(self, http: httpx.AsyncClient, key: str) -> str:
        began = anyio.current_time()
        headers = {"authorization": f"Bearer {self.who}", "idempotency-key": key}
        refused_at: float | None = None
        while True:
            url = f"{self.random.choice(self.urls)}/v1/agents/{AGENT.id}/runs"
            answer = await http.post(url, headers=headers, json={"input": "x"})
            if answer.status_code == 202:
                now = anyio.current_time()
                self.slowest_s = max(self.slowest_s, now - began)
                self.refused_s = max(self.refused_s, now - (refused_at or now))
                run: str = answer.json()["run_id"]
                return run
            assert answer.status_code in (429, 503), answer.text
            assert answer.json()["error"]["retryable"], answer.text
            self.refused[answer.status_code] += 1
            refused_at = refused_at or anyio.current_time()
            await anyio.sleep(min(1.0, float(answer.headers.get("retry-after", "1"))))

    async def _follow(self, http: httpx.AsyncClient, run: str) -> None:
        """Until the terminal event; leaves and comes back in between, anywhere."""
        events = self.seen.setdefault(run, [])
        while not (events and events[-1]["type"] in ("run.completed", "run.failed", "run.cancelled")):
            headers = {"authorization": f"Bearer {self.who}"}
            if events:
                headers["last-event-id"] = events[-1]["id"]
            leave_after = self.random.randint(1, 6)
            url = f"{self.random.choice(self.urls)}/v1/runs/{run}/events"
            async with http.stream("GET", url, headers=headers) as answer:
                assert answer.status_code in (200, 503), f"{answer.status_code} {await answer.aread()!r}"
                frame: list[str] = []
                async for line in answer.aiter_lines() if answer.status_code == 200 else _nothing():
                    frame.append(line)
                    if line == "":
                        events += events_of("\n".join(frame))
                        frame = []
                        if (leave_after := leave_after - 1) == 0:
                            break
        self.room.release()


async def _nothing() -> Any:
    return
    yield


async def test_a_tenant_moves_there_and_back_under_load(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with prompt():
        await _there_and_back(caplog, tmp_path)


async def _there_and_back(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async with open_homes() as homes, open_ports(homes.late()) as second:
        for auth in (ACME, GLOBEX):
            await homes.entitle(auth)
        async with (
            served(api(homes.api)) as one,
            served(api(second)) as two,
            httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as http,
        ):
            who = [name for name in ("acme", "globex") for _ in range(CLIENTS)]
            clients = [Client(name, [one, two], random.Random(seed)) for seed, name in enumerate(who)]  # noqa: S311 - spreads load
            with anyio.fail_after(PATIENCE_S):
                frozen = await _moved_under(homes, clients, http)
        stored = await _stored(homes)
        audited = await _audited(homes, tmp_path)

    record = {**_reconciled(clients, *stored), "frozen_s": frozen}
    print(json.dumps(record))  # noqa: T201 - what it found is for people
    for name in ("lost", "stuck", "dups", "gaps", "recorded_twice", "foreign"):
        assert record[name] == 0, record
    assert len(frozen) == 2, "there and back"
    assert max(frozen) <= FREEZE_S + STANDS_STILL_S, "by then the database has taken it back"
    assert all(client.refused_s <= REFUSED_S for client in clients), record
    assert set(audited.counts.values()) == {1}, "each run's creation is noted once"
    assert audited.counts.keys() == {row["id"] for row in stored[0]}
    assert [one for one in audited.verdicts if not one.good] == []
    assert {one.home for one in audited.verdicts if one.tenant == ACME.tenant} == {"", OTHER}
    assert not [one for one in caplog.records if one.message in ("run.crashed", "port.unexpected_error")]


async def _repeated(move: Callable[[], Awaitable[object]]) -> None:
    """As an operator does it: where this process stands still for a second, the database takes the switch back."""
    for _ in range(TRIES - 1):
        with suppress(Unavailable):
            await move()
            return
    await move()


async def _moved_under(homes: Homes, clients: list[Client], http: httpx.AsyncClient) -> list[float]:
    """How long writers waited at each switch."""
    done = anyio.Event()
    frozen: list[float] = []

    async def move(to: str, killed: Callable[[Step], Awaitable[None]] = silent) -> None:
        async def tell(step: Step) -> None:
            if step.point == "left":
                frozen.append(round(step.seconds, 3))
            await killed(step)

        await _repeated(lambda: homes.move(ACME.tenant, to, tell=tell))

    async def more(count: int) -> None:
        wanted = {client: len(client.acked) + count for client in clients if client.who == "acme"}
        while any(len(client.acked) < least for client, least in wanted.items()):  # noqa: ASYNC110 - theirs to count
            await anyio.sleep(0.02)

    async with homes.worker(homes.shared), homes.worker(homes.other), anyio.create_task_group() as group:
        for client in clients:
            group.start_soon(client.work, http, done)
        await more(3)
        for point in THERE:
            with pytest.raises(Killed):
                await move(OTHER, killed_at(point))
            await more(1)
        await move(OTHER)
        await more(3)
        await homes.clear(ACME.tenant)
        for point in BACK:
            with pytest.raises(Killed):
                await move(SHARED, killed_at(point))
            await more(1)
        await move(SHARED)
        await more(3)
        done.set()
    return frozen


async def _stored(homes: Homes) -> tuple[list[Any], list[Any], list[Any]]:
    runs = await fetch(
        homes.shared.admin,
        "SELECT 'run_' || replace(r.id::text, '-', '') AS id, r.tenant_id, r.status, i.key "
        "FROM runs r LEFT JOIN idempotency i ON i.tenant_id = r.tenant_id AND i.run_id = r.id",
    )
    twice = await fetch(homes.shared.admin, "SELECT run_id, n FROM steps GROUP BY run_id, n HAVING count(*) > 1")
    left = await fetch(homes.other.admin, "SELECT id FROM runs WHERE tenant_id <> $1", ACME.tenant)
    return runs, twice, left


@dataclass
class Audited:
    counts: Counter[str]
    """Entries that tell of a run's creation, by run."""
    verdicts: list[Verdict]


async def _audited(homes: Homes, folder: Path) -> Audited:
    counts: Counter[str] = Counter()
    for database in (homes.shared, homes.other):
        counts.update(
            row[0] for row in await fetch(database.admin, "SELECT subject FROM audit_log WHERE action = 'run.create'")
        )
    generate_key(folder / "key.pem")
    file = HeadsFile(folder / "audit", load_key(folder / "key.pem"))
    async with audit.SPEC.open(homes.control, Given(clock=CLOCK)) as log:
        await Signer(log, file, CLOCK).sign()
        return Audited(counts, await checked_chains(log, PLATFORM, None, file.read().heads))


def _reconciled(clients: list[Client], runs: list[Any], twice: list[Any], foreign: list[Any]) -> dict[str, Any]:
    stored = {row["id"]: row for row in runs}
    keys = Counter(row["key"] for row in runs)
    sequences = [[event["sequence"] for event in seen] for client in clients for seen in client.seen.values()]
    acked = {run: client for client in clients for run in client.acked.values()}
    tenants = {"acme": ACME.tenant, "globex": GLOBEX.tenant}
    return {
        "acked": len(acked),
        "lost": sum(run not in stored for run in acked),
        "stuck": sum(row["status"] not in ("succeeded", "failed", "cancelled") for row in runs),
        "failed": sum(row["status"] != "succeeded" for row in runs),
        "dups": sum(count - 1 for count in keys.values()) + sum(len(seen) - len(set(seen)) for seen in sequences),
        "gaps": sum(seen != list(range(1, len(seen) + 1)) for seen in sequences),
        "recorded_twice": len(twice),
        "foreign": len(foreign)
        + sum(run in stored and stored[run]["tenant_id"] != tenants[client.who] for run, client in acked.items()),
        "refused": {
            who: sum(sum(client.refused.values()) for client in clients if client.who == who) for who in tenants
        },
        "refused_s": round(max(client.refused_s for client in clients), 2),
        "slowest_s": {
            who: round(max(client.slowest_s for client in clients if client.who == who), 2) for who in tenants
        },
    }
