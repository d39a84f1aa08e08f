"""Harnesses of the kit over the adapters of `adapters.postgres`: each has a database of its own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import Struct

from adapters.postgres import (
    administration,
    audit,
    budget,
    event,
    maintenance,
    memory,
    privacy,
    reply_journal,
    request_log,
    run_state,
)
from adapters.postgres import tenant as tenants
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import new_run
from conformance.people import NODE, PLATFORM
from ports.adapter import AdapterSpec, Given
from ports.administration import Administration
from ports.audit import AuditLog
from ports.budget import BudgetLedger
from ports.context import AuthContext
from ports.errors import Conflict
from ports.event import EventPort
from ports.ids import RunId, TenantId, WorkerId, uuid_of
from ports.maintenance import MaintenancePort
from ports.memory import MemoryPort
from ports.messages import Json
from ports.privacy import PrivacyPort
from ports.reply_journal import ReplyJournal
from ports.request_log import RequestLog
from ports.run_state import Change, Run, RunStatePort
from ports.tenant import Entitlements, TenantDirectory
from tests.support.postgres import Clone, borrow, drop, fetch, give_back, shift_time

PortT = TypeVar("PortT")
OtherT = TypeVar("OtherT")
HOUR = timedelta(hours=1)


class PostgresHarness(Generic[PortT]):
    """A database of its own, whose time moves by redefining what it takes for now."""

    def __init__(self, spec: AdapterSpec[PostgresConfig, PortT], database: Clone) -> None:
        self.spec = spec
        self.database = database
        self.config = PostgresConfig(dsn=database.app, pool_size=20)
        self.control = PostgresConfig(dsn=database.control)
        """For what only the platform may."""
        self.closing = AsyncExitStack()
        self.shift = timedelta(0)

    @property
    def declared(self) -> Struct:
        return self.spec.capabilities(self.config)

    async def open(self) -> PortT:
        return await self.reopen()

    async def reopen(self) -> PortT:
        return await self.closing.enter_async_context(self.spec.open(self.config, Given(clock=SystemClock())))

    async def advance(self, delta: timedelta) -> None:
        self.shift += delta
        await shift_time(self.database, self.shift)

    async def now(self) -> datetime:
        [row] = await fetch(self.database.admin, "SELECT ao_now() AS now")
        now: datetime = row["now"]
        return now

    async def entitle(self, tenant: TenantId, entitlements: Entitlements) -> None:
        directory = await self.closing.enter_async_context(tenants.SPEC.open(self.control, Given(clock=SystemClock())))
        try:
            await directory.create(PLATFORM, tenant, name=tenant, entitlements=entitlements)
        except Conflict:
            await directory.set_entitlements(PLATFORM, tenant, entitlements)

    async def event_types(self, auth: AuthContext, run_id: RunId) -> list[tuple[int, str]]:
        rows = await fetch(
            self.database.admin,
            "SELECT sequence, type FROM run_events WHERE tenant_id = $1 AND run_id = $2 ORDER BY sequence",
            auth.tenant,
            uuid_of("run", run_id),
        )
        return [(row["sequence"], row["type"]) for row in rows]

    async def event_data(self, auth: AuthContext, run_id: RunId, sequence: int) -> Json:
        [row] = await fetch(
            self.database.admin,
            "SELECT data FROM run_events WHERE tenant_id = $1 AND run_id = $2 AND sequence = $3",
            auth.tenant,
            uuid_of("run", run_id),
            sequence,
        )
        return msgspec.json.decode(row["data"])

    async def close(self) -> None:
        await self.closing.aclose()
        await give_back(self.database)


class PlatformHarness(PostgresHarness[PortT]):
    """For ports of which the platform's part needs a role of its own."""

    def __init__(self, spec: AdapterSpec[PostgresConfig, PortT], database: Clone) -> None:
        super().__init__(spec, database)
        self.config = PostgresConfig(dsn=database.control, pool_size=20)


class PostgresRunStateHarness(PostgresHarness[RunStatePort]):
    def __init__(self, database: Clone) -> None:
        super().__init__(run_state.SPEC, database)

    async def memory(self) -> MemoryPort:
        return await self.closing.enter_async_context(memory.SPEC.open(self.config, Given(clock=SystemClock())))


class PostgresAuditHarness(PostgresHarness[AuditLog]):
    """As the role of administration: only it erases, and hears of every tenant's head."""

    def __init__(self, database: Clone) -> None:
        super().__init__(audit.SPEC, database)
        self.config = self.control


class PostgresEventHarness(PostgresHarness[EventPort]):
    def __init__(self, database: Clone) -> None:
        super().__init__(event.SPEC, database)

    async def _runs(self) -> RunStatePort:
        return await self.closing.enter_async_context(run_state.SPEC.open(self.config, Given(clock=SystemClock())))

    async def start_run(self, auth: AuthContext) -> Run:
        worker = WorkerId("wrk_backdoor")
        state = await self._runs()
        await state.renew(NODE, worker, HOUR)
        created = await state.create(auth, new_run())
        return await state.claim(auth, created.run.id, worker)

    async def append(self, auth: AuthContext, run: Run, change: Change) -> None:
        state = await self._runs()
        await state.append(auth, run.id, run.epoch, change)

    async def elsewhere(self) -> EventPort:
        other = PostgresEventHarness(await borrow())
        self.closing.push_async_callback(other.close)
        return await other.open()


class PostgresMaintenanceHarness(PostgresHarness[MaintenancePort]):
    """On a database of its own to the end: upkeep makes and drops tables, so nobody else may have it afterwards."""

    def __init__(self, database: Clone) -> None:
        super().__init__(maintenance.SPEC, database)

    async def runs(self) -> RunStatePort:
        return await self.closing.enter_async_context(run_state.SPEC.open(self.config, Given(clock=SystemClock())))

    async def events(self) -> EventPort:
        return await self.closing.enter_async_context(event.SPEC.open(self.config, Given(clock=SystemClock())))

    async def requests(self) -> RequestLog:
        return await self.closing.enter_async_context(request_log.SPEC.open(self.config, Given(clock=SystemClock())))

    async def replies(self) -> ReplyJournal:
        return await self.closing.enter_async_context(reply_journal.SPEC.open(self.config, Given(clock=SystemClock())))

    async def leftovers(self) -> tuple[int, ...]:
        tables = ("request_records", "request_contents", "model_replies")
        return tuple([(await fetch(self.database.admin, f"SELECT count(*) FROM {name}"))[0][0] for name in tables])

    async def close(self) -> None:
        await self.closing.aclose()
        await drop(self.database)


class PostgresPrivacyHarness(PostgresHarness[PrivacyPort]):
    """As the role of administration, beside ports of the services. On a database of its own to the end."""

    def __init__(self, database: Clone) -> None:
        super().__init__(privacy.SPEC, database)
        self.services = self.config
        self.config = self.control
        self._opened: dict[int, Any] = {}

    async def runs(self) -> RunStatePort:
        return await self._port(run_state.SPEC)

    async def requests(self) -> RequestLog:
        return await self._port(request_log.SPEC)

    async def ledger(self) -> BudgetLedger:
        return await self._port(budget.SPEC)

    async def memory(self) -> MemoryPort:
        return await self._port(memory.SPEC)

    async def replies(self) -> ReplyJournal:
        return await self._port(reply_journal.SPEC)

    async def maintenance(self) -> MaintenancePort:
        return await self._port(maintenance.SPEC)

    async def tenants(self) -> TenantDirectory:
        return await self._port(tenants.SPEC, self.control)

    async def audit_log(self) -> AuditLog:
        return await self._port(audit.SPEC, self.control)

    async def administration(self) -> Administration:
        return await self._port(administration.SPEC, self.control)

    async def _port(self, spec: AdapterSpec[PostgresConfig, OtherT], config: PostgresConfig | None = None) -> OtherT:
        name = id(spec)
        if name not in self._opened:
            given = Given(clock=SystemClock())
            self._opened[name] = await self.closing.enter_async_context(spec.open(config or self.services, given))
        return cast(OtherT, self._opened[name])

    async def close(self) -> None:
        await self.closing.aclose()
        await drop(self.database)


class PostgresRequestLogHarness(PostgresHarness[RequestLog]):
    def __init__(self, database: Clone) -> None:
        super().__init__(request_log.SPEC, database)

    async def audit(self, auth: AuthContext) -> list[tuple[str, str]]:
        rows = await fetch(
            self.database.admin, "SELECT action, subject FROM audit_log WHERE tenant_id = $1 ORDER BY id", auth.tenant
        )
        return [(row["action"], row["subject"]) for row in rows]


class PostgresAdministrationHarness(PlatformHarness[Administration]):
    def __init__(self, database: Clone) -> None:
        super().__init__(administration.SPEC, database)

    async def directory(self) -> TenantDirectory:
        return await self.closing.enter_async_context(tenants.SPEC.open(self.control, Given(clock=SystemClock())))

    async def runs(self) -> RunStatePort:
        config = PostgresConfig(dsn=self.database.app)
        return await self.closing.enter_async_context(run_state.SPEC.open(config, Given(clock=SystemClock())))


HarnessT = TypeVar("HarnessT", bound=PostgresHarness[Any])


@asynccontextmanager
async def closing(harness: HarnessT) -> AsyncIterator[HarnessT]:
    try:
        yield harness
    finally:
        await harness.close()
