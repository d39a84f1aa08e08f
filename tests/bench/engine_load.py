"""Creates runs the way Stack A's API does, without its HTTP, and reads from the database what became of them."""

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import asyncpg
from msgspec import Struct

from adapters.system_clock import SystemClock
from deploy.roots.wiring import Choice, open_ports
from observability.metrics import Metrics
from ports.agent import AgentSpec
from ports.context import AuthContext, Trace
from ports.errors import Conflict, Unavailable
from ports.ids import AgentId, PrincipalId, TenantId
from ports.run_intake import RunRequest
from ports.run_state import Idempotency
from ports.tenant import Entitlements
from stack_a.deps import API_NEEDS
from stack_a.runs.start import Intake
from tests.bench.engine_worker import MODEL, TOOL
from tests.bench.figures import percentile
from tests.support.postgres import Server, fetch

AGENT: Final = AgentId("agt_bench")
CALLER: Final = AuthContext(
    tenant=TenantId("tnt_bench"),
    principal=PrincipalId("svc_bench"),
    scopes=frozenset({"runs:create", "runs:read", "tools:invoke", "models:invoke"}),
    trace=Trace(
        correlation_id="0197f3c2a1b04c5d8e6f708192a3b4c5",
        traceparent="00-0197f3c2a1b04c5d8e6f708192a3b4c5-0011223344556677-01",
    ),
)
_PLATFORM: Final = AuthContext(
    tenant=CALLER.tenant, principal=PrincipalId("usr_bench"), scopes=frozenset({"admin:platform"})
)
# What the engine does is measured, not what a tenant may.
_UNBOUNDED: Final = Entitlements(max_active_runs=1_000, runs_per_minute=1_000_000, max_queued_runs=10_000_000)
_STORED: Final = ("run_state", "queue", "agent")
_POLL_SECONDS: Final = 0.01
_END_SECONDS: Final = 30.0


class Phase(Struct, frozen=True, kw_only=True):
    """What the database says of the runs of one phase, by its own clock."""

    runs: int
    seconds: float
    """From the first creation to the last end."""
    claim_p50_ms: float
    claim_p99_ms: float
    """From `run.created` to `run.started`. Events are dated inside their transaction, so the creation's own wait for the
    disk is part of this."""
    end_p50_ms: float
    """From `run.created` to the terminal event."""


class Load:
    """Creates runs in one session per phase. Every run of this database is ours."""

    def __init__(self, intake: Intake, watching: asyncpg.Connection, callers: Sequence[AuthContext]) -> None:
        self._intake = intake
        self._callers = callers
        self._watching = watching
        self.polls = 0
        """Transactions of our own looking, to be taken off what is counted."""

    async def saturate(self, phase: str, *, runs: int, window: int, seconds: float) -> None:
        """Keep `window` runs open until `runs` were created, or `seconds` are over; then until none is open."""
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(window)
        created = 0

        async def create(number: int) -> None:
            nonlocal created
            await self._create(phase, number)
            created += 1

        async def make_room() -> None:
            ended = 0
            while True:
                # Counted before looking: what is created meanwhile can't be taken for ended.
                known = created
                newly = known - await self.open() - ended
                for _ in range(newly):
                    room.release()
                ended += max(0, newly)
                await asyncio.sleep(_POLL_SECONDS)

        over = loop.time() + seconds
        async with asyncio.TaskGroup() as group:
            making_room = group.create_task(make_room())
            creating: list[asyncio.Task[None]] = []
            for number in range(runs):
                await room.acquire()
                if loop.time() > over:
                    break
                creating.append(group.create_task(create(number)))
            await asyncio.gather(*creating)
            making_room.cancel()
        await self.until_none_open()

    async def pace(self, phase: str, *, runs: int, per_second: float, seed: int) -> None:
        """Create `runs` at random moments, `per_second` on average, whether the engine keeps up or not, then wait."""
        loop = asyncio.get_running_loop()
        draw = random.Random(seed)  # noqa: S311 - the same arrivals each time are the point
        due = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(runs):
                due += draw.expovariate(per_second)
                await asyncio.sleep(due - loop.time())
                group.create_task(self._create(phase, number))
        await self.until_none_open()

    async def until_none_open(self) -> None:
        try:
            async with asyncio.timeout(_END_SECONDS):
                while await self.open():  # noqa: ASYNC110 - the end happens in other processes
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise Unavailable(f"runs are still open after {_END_SECONDS:.0f} s; see the worker's log") from None

    async def open(self) -> int:
        """Runs that have not ended."""
        self.polls += 1
        count: int = await self._watching.fetchval("SELECT count(*) FROM runs WHERE status IN ('queued', 'running')")
        return count

    async def _create(self, phase: str, number: int) -> None:
        key = f"{phase}-{number}"
        idempotency = Idempotency(route="POST /v1/agents/{agent_id}/runs", key=key, fingerprint=key)
        await self._intake.accept(
            self._callers[number % len(self._callers)],
            RunRequest(agent_id=AGENT, input="Probe once.", idempotency=idempotency, session_id=phase),
        )


@asynccontextmanager
async def open_load(server: Server, callers: Sequence[AuthContext] = (CALLER,)) -> AsyncIterator[Load]:
    """The API's side of the engine, with its agent published. Runs are of `callers` in turn, who have what `CALLER` has."""
    choices = {port: Choice(adapter="postgres", config={"dsn": server.dsn("ao_app")}) for port in _STORED}
    choices["tenant"] = Choice(adapter="postgres", config={"dsn": server.dsn("ao_control")})
    needs = {port: API_NEEDS.get(port) for port in choices}
    async with open_ports(choices, needs, clock=SystemClock()) as ports:
        with suppress(Conflict):  # there from an earlier phase
            await ports["tenant"].create(_PLATFORM, CALLER.tenant, name="Bench", entitlements=_UNBOUNDED)
        await ports["agent"].publish(CALLER, AgentSpec(id=AGENT, model=MODEL, tools=(TOOL,)))
        watching = await asyncpg.connect(server.dsn("ao_admin"), server_settings={"search_path": "agentos"})
        try:
            intake = {name: ports[name] for name in _STORED}
            yield Load(Intake(metrics=Metrics(), **intake), watching, callers)
        finally:
            await watching.close()


async def read_phase(server: Server, phase: str) -> Phase:
    """Raises `Unavailable` when a run did not succeed: then there is nothing to measure."""
    rows = await fetch(
        server.dsn("ao_admin"),
        """
        SELECT r.status, r.created_at, r.finished_at,
               extract(epoch FROM min(e.time) FILTER (WHERE e.type = 'run.started')
                                  - min(e.time) FILTER (WHERE e.type = 'run.created'))::float8 * 1000 AS claim_ms,
               extract(epoch FROM max(e.time) - min(e.time))::float8 * 1000 AS end_ms
        FROM runs r
        JOIN run_events e ON e.tenant_id = r.tenant_id AND e.run_id = r.id
        WHERE r.session_id = $1
        GROUP BY r.tenant_id, r.id
        """,
        phase,
    )
    if failed := [row["status"] for row in rows if row["status"] != "succeeded"]:
        raise Unavailable(f"{len(failed)} of {len(rows)} runs did not succeed ({failed[0]}); see the worker's log")
    claims = [row["claim_ms"] for row in rows]
    took = max(row["finished_at"] for row in rows) - min(row["created_at"] for row in rows)
    return Phase(
        runs=len(rows),
        seconds=took.total_seconds(),
        claim_p50_ms=percentile(claims, 0.5),
        claim_p99_ms=percentile(claims, 0.99),
        end_p50_ms=statistics.median(row["end_ms"] for row in rows),
    )
