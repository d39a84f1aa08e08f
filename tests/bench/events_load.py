"""Open event streams, commit events, and note when each arrives at its reader."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

from msgspec import Struct

from adapters.system_clock import SystemClock
from conformance.factories import idempotency
from deploy.roots.wiring import Choice, open_ports
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.errors import Conflict, Unavailable
from ports.ids import AgentId, PrincipalId, RunId, TenantId, WorkerId
from ports.run_state import Change, NewEvent, NewRun, Run, RunStatePort
from ports.tenant import Entitlements
from stack_a.lease import LEASE, RENEW_EVERY
from tests.bench.events_server import identity
from tests.support.postgres import Server

_PER_PRINCIPAL: Final = 50
# For as many streams as are asked for.
_TENANTS: Final = 1_000 // _PER_PRINCIPAL + 1
# Readers are measured, not what a tenant may.
_UNBOUNDED: Final = Entitlements(max_active_runs=1_000, runs_per_minute=1_000_000)
_PLATFORM: Final = AuthContext(
    tenant=TenantId("tnt_bench"), principal=PrincipalId("usr_bench"), scopes=frozenset({"admin:platform"})
)
_WORKER: Final = WorkerId("wrk_bench_events")
_NODE: Final = AuthContext(
    tenant=TenantId("tnt_node"), principal=PrincipalId("svc_bench"), scopes=frozenset({RUNS_ANY_TENANT})
)
_EVENT: Final = NewEvent(type="model.delta", data={"step": 1, "attempt": 1, "text": "word " * 20})
_ARRIVAL_SECONDS: Final = 10.0


class Target(Struct, frozen=True):
    """A run to write to, and the token its streams are opened with."""

    run: Run
    token: str

    @property
    def auth(self) -> AuthContext:
        return identity(self.token)


class Arrivals:
    """When each event of each run was committed, and how long after that it reached each reader."""

    def __init__(self) -> None:
        self._committed: dict[tuple[RunId, int], float] = {}
        self._early: dict[tuple[RunId, int], list[float]] = {}
        self.delays: list[float] = []
        self.expected = 0

    def committed(self, run: RunId, sequence: int, at: float, readers: int) -> None:
        self._committed[run, sequence] = at
        self.expected += readers
        # A reader may be told before the writer hears that it has committed.
        self.delays += [max(0.0, seen - at) for seen in self._early.pop((run, sequence), [])]

    def arrived(self, run: RunId, sequence: int, at: float) -> None:
        began = self._committed.get((run, sequence))
        if began is None:
            self._early.setdefault((run, sequence), []).append(at)
        else:
            self.delays.append(at - began)

    async def all_here(self) -> None:
        try:
            async with asyncio.timeout(_ARRIVAL_SECONDS):
                while len(self.delays) < self.expected:  # noqa: ASYNC110 - what arrives tells nobody
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise Unavailable(f"{self.expected - len(self.delays)} events did not arrive") from None


class Reader(asyncio.Protocol):
    """One event stream, read as cheaply as Python can: ids out of bytes."""

    def __init__(self, target: Target, arrivals: Arrivals) -> None:
        self._run = target.run.id
        self._token = target.token
        self._arrivals = arrivals
        self._rest = b""
        self.started = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        head = f"GET /v1/runs/{self._run}/events HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._token}\r\n\r\n"
        self._transport.write(head.encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            _, found, tail = frame.partition(b"\nid: ")
            if not found:
                continue
            sequence = int(tail.partition(b"\n")[0].rpartition(b".")[2])
            if sequence > 2:  # the run's creation and start
                self._arrivals.arrived(self._run, sequence, now)
            elif sequence == 2 and not self.started.done():
                self.started.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.started.done():
            self.started.set_exception(Unavailable(f"a stream was refused: {self._rest[:200]!r} {error}"))

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


@asynccontextmanager
async def open_runs(server: Server) -> AsyncIterator[RunStatePort]:
    """The writer's side, as a worker has it, with a live lease."""
    roles = {"run_state": "ao_app", "tenant": "ao_control"}
    choices = {port: Choice(adapter="postgres", config={"dsn": server.dsn(role)}) for port, role in roles.items()}
    async with open_ports(choices, dict.fromkeys(choices), clock=SystemClock()) as ports:
        for number in range(_TENANTS):
            with suppress(Conflict):  # there from an earlier part
                await ports["tenant"].create(
                    _PLATFORM, TenantId(f"tnt_bench{number}"), name="x", entitlements=_UNBOUNDED
                )
        runs: RunStatePort = ports["run_state"]
        await runs.renew(_NODE, _WORKER, LEASE)

        async def renew() -> None:
            while True:
                await asyncio.sleep(RENEW_EVERY.total_seconds())
                await runs.renew(_NODE, _WORKER, LEASE)

        renewing = asyncio.create_task(renew())
        try:
            yield runs
        finally:
            renewing.cancel()


async def targets(runs: RunStatePort, count: int) -> list[Target]:
    """Claimed runs, of as many tenants as the caps ask for."""

    async def one(number: int) -> Target:
        token = f"tnt_bench{number // _PER_PRINCIPAL}/usr_bench"
        auth = identity(token)
        new = NewRun(
            agent_id=AgentId("agt_bench"), agent_version=1, agent_digest="d", input="x", idempotency=idempotency()
        )
        created = await runs.create(auth, new)
        return Target(await runs.claim(auth, created.run.id, _WORKER), token)

    return [await one(number) for number in range(count)]


@asynccontextmanager
async def reading(port: int, opened: list[Target], arrivals: Arrivals) -> AsyncIterator[None]:
    """A stream on each of `opened`; the block begins once all have caught up."""
    loop = asyncio.get_running_loop()
    readers: list[Reader] = []
    try:
        for target in opened:
            _, reader = await loop.create_connection(lambda target=target: Reader(target, arrivals), "127.0.0.1", port)  # type: ignore[misc]  # the default binds the loop's value
            readers.append(reader)
            async with asyncio.timeout(_ARRIVAL_SECONDS):
                await reader.started
        yield
    finally:
        for reader in readers:
            reader.close()


async def write(
    runs: RunStatePort, to: list[Target], arrivals: Arrivals, *, per_second: float, seconds: float, readers_of_each: int
) -> None:
    """Commit events at random moments to random runs, `per_second` in all, and wait until all have arrived."""
    loop = asyncio.get_running_loop()
    draw = random.Random(1)  # noqa: S311 - the same arrivals each time are the point
    over = loop.time() + seconds
    due = loop.time()
    locks = {target.run.id: asyncio.Lock() for target in to}

    async def one(target: Target) -> None:
        # One writer per run, as in production.
        async with locks[target.run.id]:
            done = await runs.append(target.auth, target.run.id, target.run.epoch, Change(events=(_EVENT,)))
            arrivals.committed(target.run.id, done.last_sequence, time.perf_counter(), readers_of_each)

    async with asyncio.TaskGroup() as group:
        while due < over:
            due += draw.expovariate(per_second)
            await asyncio.sleep(due - loop.time())
            group.create_task(one(draw.choice(to)))
    await arrivals.all_here()
