"""R18: a disk that is full loses nothing that was promised, and once there is room again all goes on by itself.

The record is printed: `pytest -rP` shows it.
"""

import secrets
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import anyio
import httpx
import msgspec
import pytest

from adapters.postgres import agent, audit, event, queue, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.people import ACME, PLATFORM
from observability.metrics import Metrics
from ports.adapter import Given
from ports.tenant import Entitlements
from stack_a.app import create_app
from stack_a.deps import ApiDeps
from tests.faults.reconcile import record
from tests.support.disks import SmallDisk, may_mount
from tests.support.postgres import fetch
from tests.support.postgres_node import Node
from tests.support.stack_a import AGENT, Tokens

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not may_mount(), reason="a disk of a chosen size needs root and the right to mount"),
]

SPARE_BYTES: Final = 24 * 1024 * 1024
MORE_BYTES: Final = 256 * 1024 * 1024
CLIENTS: Final = 4
REFUSALS: Final = 40
MOST: Final = 1_000
"""Requests that must have filled it."""
HEALED_WITHIN_S: Final = 30.0


@dataclass
class Client:
    """Creates runs, each with an input of its own, and keeps what it was promised."""

    http: httpx.AsyncClient
    inputs: dict[str, str] = field(default_factory=dict)
    """By key."""
    promised: dict[str, str] = field(default_factory=dict)
    """The run's id, by key."""
    statuses: Counter[int] = field(default_factory=Counter)

    async def create(self, key: str | None = None) -> int:
        key = key or uuid.uuid4().hex
        text = self.inputs.setdefault(key, secrets.token_hex(50_000))
        headers = {"authorization": "Bearer acme", "idempotency-key": key}
        answer = await self.http.post(f"/v1/agents/{AGENT.id}/runs", headers=headers, json={"input": text})
        self.statuses[answer.status_code] += 1
        if answer.status_code == 202:
            self.promised[key] = answer.json()["run_id"]
        return answer.status_code

    async def read(self, key: str) -> tuple[int, Any]:
        answer = await self.http.get(f"/v1/runs/{self.promised[key]}", headers={"authorization": "Bearer acme"})
        return answer.status_code, answer.json()

    async def fill(self, refusals: int) -> None:
        while self.statuses[503] < refusals and self.statuses.total() < MOST:
            await self.create()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "postgres")
    made.start()
    made.set_up()
    yield made
    made.end()


@pytest.fixture
def disk(node: Node) -> Iterator[SmallDisk]:
    node.stop()
    made = SmallDisk(node.server.layout.data, spare_bytes=SPARE_BYTES)
    node.start()
    yield made
    node.stop()
    node.process = None
    made.end()


@pytest.fixture
async def client(node: Node, disk: SmallDisk) -> AsyncIterator[Client]:
    assert disk.free_bytes() <= SPARE_BYTES
    config, given = PostgresConfig(dsn=node.server.dsn("ao_app")), Given(clock=SystemClock())
    modules = {"run_state": run_state, "event": event, "queue": queue, "agent": agent, "audit": audit, "tenant": tenant}
    async with AsyncExitStack() as stack:
        ports: dict[str, Any] = {
            name: await stack.enter_async_context(cast("Any", module).SPEC.open(config, given))
            for name, module in modules.items()
        }
        tenants = await stack.enter_async_context(
            tenant.SPEC.open(PostgresConfig(dsn=node.server.dsn("ao_control")), given)
        )
        generous = Entitlements(runs_per_minute=1_000_000, max_queued_runs=10_000_000)
        await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=generous)
        await ports["agent"].publish(ACME, AGENT)
        app = create_app(ApiDeps(clock=given.clock, verifier=Tokens(), metrics=Metrics(), **ports))
        transport = httpx.ASGITransport(cast("Any", app))
        yield Client(await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://node")))


async def healed(node: Node, client: Client) -> float:
    """Seconds until a run is accepted again. A server that gave up is started again, as its supervisor would."""
    began = anyio.current_time()
    with anyio.move_on_after(HEALED_WITHIN_S * 2):
        while await client.create() != 202:
            if node.process is not None and node.process.poll() is not None:
                await anyio.to_thread.run_sync(node.start)
            await anyio.sleep(0.1)
    return anyio.current_time() - began


async def test_what_was_accepted_before_and_while_the_disk_was_full_is_there_and_all_goes_on_with_room(
    node: Node, disk: SmallDisk, client: Client
) -> None:
    with anyio.fail_after(240):
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(client.fill, REFUSALS)
        free = disk.free_bytes()
        alive = node.process is not None and node.process.poll() is None
        reads = Counter([(await client.read(key))[0] for key in list(client.promised)[:20]])
        accepted = len(client.promised)
        disk.enlarge(MORE_BYTES)
        seconds = await healed(node, client)
        for key in client.inputs.keys() - client.promised.keys():
            await client.create(key)
        found = {key: await client.read(key) for key in client.promised}
        [[runs]] = await fetch(node.server.dsn("ao_admin"), "SELECT count(*) FROM runs")

    proof = record(
        "R18",
        {
            "lost": sum(status != 200 or body["input"] != client.inputs[key] for key, (status, body) in found.items()),
            "never_accepted": len(client.inputs.keys() - client.promised.keys()),
            "twice": runs - len(client.inputs),
            "not_retryable": sum(count for status, count in client.statuses.items() if status not in {202, 503}),
            "reads_not_retryable": sum(count for status, count in reads.items() if status not in {200, 503}),
            "never_full": int(client.statuses[503] < REFUSALS),
            "healed_s": round(seconds, 1),
        },
        limits={"healed_s": HEALED_WITHIN_S},
        accepted_before=accepted,
        free_bytes=free,
        alive_when_full=alive,
        statuses=", ".join(f"{status}={count}" for status, count in sorted(client.statuses.items())),
        reads=", ".join(f"{status}={count}" for status, count in sorted(reads.items())),
    )
    sys.stdout.write(msgspec.json.encode(proof).decode() + "\n")
    assert proof.ok, proof
    assert accepted > 20
