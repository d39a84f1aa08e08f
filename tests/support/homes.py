"""A node with two homes: the shared database and one more, the API's ports before both, and workers for each."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from adapters.inproc.model import Rule
from adapters.postgres import agent, audit, event, homes, memory, queue, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.move import clear_remains, move_tenant
from adapters.postgres.move_job import Places, Report, Step
from adapters.system_clock import SystemClock
from conformance.factories import idempotency
from conformance.people import PLATFORM
from observability.metrics import Metrics
from ports.adapter import Given
from ports.agent import AgentRegistry, AgentSpec
from ports.audit import AuditLog
from ports.context import AuthContext
from ports.errors import Conflict
from ports.event import EventPort
from ports.ids import AgentId, RunId, TenantId
from ports.memory import MemoryPort
from ports.messages import Json
from ports.queue import QueuePort
from ports.run_intake import RunRequest
from ports.run_state import RunStatePort
from ports.tenant import Entitlements, TenantDirectory
from stack_a.runs.start import Intake
from tests.support.postgres import Clone, cloned, fetch
from tests.support.worker_node import first_a_tool_then_text, working

CLOCK: Final = SystemClock()
AGENT: Final = AgentSpec(id=AgentId("agt_homes"), model="m", tools=("count",))
OTHER: Final = "eu1"


@dataclass(kw_only=True)
class Ports:
    """One process' way to the store."""

    runs: RunStatePort
    events: EventPort
    queue: QueuePort
    agents: AgentRegistry
    memory: MemoryPort
    tenants: TenantDirectory
    audit: AuditLog

    async def create(self, auth: AuthContext, key: str | None = None) -> RunId:
        intake = Intake(run_state=self.runs, agent=self.agents, queue=self.queue, metrics=Metrics())
        request = RunRequest(agent_id=AGENT.id, input="x", idempotency=idempotency(key))
        return (await intake.accept(auth, request)).run.id


@asynccontextmanager
async def open_ports(config: PostgresConfig, control: PostgresConfig | None = None) -> AsyncIterator[Ports]:
    """As a service has it; with `control`, the directory as administration has it."""
    given = Given(clock=CLOCK)
    async with AsyncExitStack() as stack:

        async def opened(spec: Any, other: PostgresConfig | None = None) -> Any:  # a spec of any port
            return await stack.enter_async_context(spec.open(other or config, given))

        yield Ports(
            runs=await opened(run_state.SPEC),
            events=await opened(event.SPEC),
            queue=await opened(queue.SPEC),
            agents=await opened(agent.SPEC),
            memory=await opened(memory.SPEC),
            tenants=await opened(tenant.SPEC, control),
            audit=await opened(audit.SPEC),
        )


@dataclass(kw_only=True)
class Homes:
    shared: Clone
    other: Clone
    api: Ports
    calls: list[str] = field(default_factory=list)
    """Effect keys of the tool's calls."""
    hold: anyio.Event | None = None
    """What the tool's calls wait for."""
    held: anyio.Event = field(default_factory=anyio.Event)
    let_go: anyio.Event = field(default_factory=anyio.Event)
    """A call that waited was cancelled."""

    @property
    def config(self) -> PostgresConfig:
        return PostgresConfig(dsn=self.shared.app, homes=((OTHER, self.other.app),))

    @property
    def control(self) -> PostgresConfig:
        """As administration has it."""
        return PostgresConfig(dsn=self.shared.control, homes=((OTHER, self.other.control),))

    @property
    def places(self) -> Places:
        return Places(dsns={"shared": self.shared.owner, OTHER: self.other.owner})

    def late(self) -> PostgresConfig:
        """Of a process of its own, which knows what it knows by itself."""
        return replace(self.config, pool_size=3)

    async def clear(self, tenant: TenantId) -> None:
        """Whatever remains, at once."""
        with suppress(Conflict):
            await clear_remains(PLATFORM, tenant, self.places, tell=silent, grace=timedelta(0))

    async def entitle(self, auth: AuthContext, entitlements: Entitlements | None = None) -> None:
        await self.api.tenants.create(
            PLATFORM, auth.tenant, name=auth.tenant, entitlements=entitlements or Entitlements(runs_per_minute=100_000)
        )
        await self.api.agents.publish(auth, AGENT)

    async def move(self, tenant: TenantId, to: str, *, tell: Callable[[Step], Awaitable[None]] | None = None) -> Report:
        return await move_tenant(PLATFORM, tenant, to, self.places, tell=tell or silent)

    @asynccontextmanager
    async def worker(
        self, home: Clone, *, concurrency: int = 8, rule: Rule = first_a_tool_then_text
    ) -> AsyncIterator[None]:
        """Of one home, as a node has it: it knows no other."""
        async with (
            open_ports(PostgresConfig(dsn=home.app)) as ports,
            working(ports, self._count, concurrency=concurrency, rule=rule),
        ):
            yield

    async def _count(self, _auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        self.calls.append(key)
        if self.hold is not None:
            self.held.set()
            try:
                await self.hold.wait()
            except BaseException:
                self.let_go.set()
                raise
        return None


class Killed(Exception):
    pass


def killed_at(point: str, *, times: int = 1) -> Callable[[Step], Awaitable[None]]:
    """Dies at the given time that the move tells of `point`, with its connections."""
    left = [times]

    async def tell(step: Step) -> None:
        if step.point == point:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    return tell


async def silent(_: Step) -> None:
    pass


async def waits_for_a_lock(clone: Clone) -> None:
    waiting = (
        "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE d.datname = $1 AND l.locktype = 'advisory' AND NOT l.granted"
    )
    with anyio.fail_after(30):
        while not await fetch(clone.superuser, waiting, clone.name):  # noqa: ASYNC110 - the database does
            await anyio.sleep(0.02)


@contextmanager
def prompt() -> Iterator[None]:
    """Routers ask each time, so that remains may be cleared at once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(homes, "LATE_S", -1.0)
        patched.setattr(homes, "HEARD_S", 0.0)
        yield


@asynccontextmanager
async def open_homes() -> AsyncIterator[Homes]:
    async with cloned() as shared, cloned() as other:
        config = PostgresConfig(dsn=shared.app, homes=((OTHER, other.app),))
        control = PostgresConfig(dsn=shared.control, homes=((OTHER, other.control),))
        async with open_ports(config, control) as api:
            yield Homes(shared=shared, other=other, api=api)
