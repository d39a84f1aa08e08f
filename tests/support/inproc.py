"""Harnesses of the kit over the adapters of `adapters.inproc`."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from msgspec import Struct

from adapters.inproc import (
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
    runs,
    store,
)
from adapters.inproc.store import InprocConfig
from adapters.inproc.tenant import InprocTenants
from conformance.clock import ManualClock
from conformance.factories import new_run
from conformance.people import NODE, PLATFORM
from ports.adapter import AdapterSpec, Given
from ports.administration import Administration
from ports.audit import AuditLog
from ports.budget import BudgetLedger
from ports.context import AuthContext
from ports.errors import Conflict
from ports.event import EventPort
from ports.ids import RunId, TenantId, WorkerId
from ports.maintenance import MaintenancePort
from ports.memory import MemoryPort
from ports.messages import Json
from ports.privacy import PrivacyPort
from ports.reply_journal import ReplyJournal
from ports.request_log import RequestLog
from ports.run_state import Change, Run, RunStatePort
from ports.tenant import Entitlements, TenantDirectory

PortT = TypeVar("PortT")
HOUR = timedelta(hours=1)


class InprocHarness(Generic[PortT]):
    """A storage of its own, over a clock of the kit."""

    def __init__(self, spec: AdapterSpec[InprocConfig, PortT]) -> None:
        self.spec = spec
        self.config = InprocConfig(name=uuid.uuid4().hex)
        self.clock = ManualClock()
        self.closing = AsyncExitStack()

    @property
    def declared(self) -> Struct:
        return self.spec.capabilities(self.config)

    async def open(self) -> PortT:
        return await self.reopen()

    async def reopen(self) -> PortT:
        return await self.closing.enter_async_context(self.spec.open(self.config, Given(clock=self.clock)))

    async def advance(self, delta: timedelta) -> None:
        await self.clock.advance(delta)

    async def now(self) -> datetime:
        return self.clock.now()

    async def entitle(self, tenant: TenantId, entitlements: Entitlements) -> None:
        directory = InprocTenants(store.store(self.config.name), self.clock)
        try:
            await directory.create(PLATFORM, tenant, name=tenant, entitlements=entitlements)
        except Conflict:
            await directory.set_entitlements(PLATFORM, tenant, entitlements)

    async def event_types(self, auth: AuthContext, run_id: RunId) -> list[tuple[int, str]]:
        row = store.store(self.config.name).table(runs.Runs).row(auth, run_id)
        return [(one.sequence, one.type) for one in row.events]

    async def event_data(self, auth: AuthContext, run_id: RunId, sequence: int) -> Json:
        row = store.store(self.config.name).table(runs.Runs).row(auth, run_id)
        return row.events[sequence - 1].data

    async def close(self) -> None:
        await self.closing.aclose()
        store.drop(self.config.name)


class InprocAdministrationHarness(InprocHarness[Administration]):
    def __init__(self) -> None:
        super().__init__(administration.SPEC)

    async def directory(self) -> TenantDirectory:
        return InprocTenants(store.store(self.config.name), self.clock)

    async def runs(self) -> RunStatePort:
        return await self.closing.enter_async_context(run_state.SPEC.open(self.config, Given(clock=self.clock)))


class InprocRunStateHarness(InprocHarness[RunStatePort]):
    def __init__(self) -> None:
        super().__init__(run_state.SPEC)

    async def memory(self) -> MemoryPort:
        return memory.InprocMemory(store.store(self.config.name), self.clock)


class InprocEventHarness(InprocHarness[EventPort]):
    def __init__(self) -> None:
        super().__init__(event.SPEC)

    def _runs(self) -> run_state.InprocRunState:
        return run_state.InprocRunState(store.store(self.config.name), self.clock)

    async def start_run(self, auth: AuthContext) -> Run:
        worker = WorkerId("wrk_backdoor")
        state = self._runs()
        await state.renew(NODE, worker, HOUR)
        created = await state.create(auth, new_run())
        return await state.claim(auth, created.run.id, worker)

    async def append(self, auth: AuthContext, run: Run, change: Change) -> None:
        await self._runs().append(auth, run.id, run.epoch, change)

    async def elsewhere(self) -> EventPort:
        other = InprocEventHarness()
        self.closing.push_async_callback(other.close)
        return await other.open()


class InprocMaintenanceHarness(InprocHarness[MaintenancePort]):
    def __init__(self) -> None:
        super().__init__(maintenance.SPEC)

    async def runs(self) -> RunStatePort:
        return run_state.InprocRunState(store.store(self.config.name), self.clock)

    async def events(self) -> EventPort:
        return event.InprocEvents(store.store(self.config.name))

    async def requests(self) -> RequestLog:
        return request_log.InprocRequestLog(store.store(self.config.name), self.clock)

    async def replies(self) -> ReplyJournal:
        return reply_journal.InprocReplyJournal(store.store(self.config.name), self.clock)

    async def leftovers(self) -> tuple[int, int, int]:
        rows = store.store(self.config.name).table(request_log.Requests).rows
        sealed = sum(written.sealed is not None for written in rows.values())
        return len(rows), sealed, len(store.store(self.config.name).table(reply_journal.Entries).rows)


class InprocPrivacyHarness(InprocHarness[PrivacyPort]):
    def __init__(self) -> None:
        super().__init__(privacy.SPEC)

    async def runs(self) -> RunStatePort:
        return run_state.InprocRunState(store.store(self.config.name), self.clock)

    async def requests(self) -> RequestLog:
        return request_log.InprocRequestLog(store.store(self.config.name), self.clock)

    async def ledger(self) -> BudgetLedger:
        return budget.InprocBudget(store.store(self.config.name), self.clock)

    async def tenants(self) -> TenantDirectory:
        return InprocTenants(store.store(self.config.name), self.clock)

    async def maintenance(self) -> MaintenancePort:
        return maintenance.InprocMaintenance(store.store(self.config.name), self.clock)

    async def memory(self) -> MemoryPort:
        return memory.InprocMemory(store.store(self.config.name), self.clock)

    async def replies(self) -> ReplyJournal:
        return reply_journal.InprocReplyJournal(store.store(self.config.name), self.clock)

    async def audit_log(self) -> AuditLog:
        return audit.InprocAuditLog(store.store(self.config.name), self.clock)

    async def administration(self) -> Administration:
        return administration.InprocAdministration(store.store(self.config.name), self.clock)


class InprocRequestLogHarness(InprocHarness[RequestLog]):
    def __init__(self) -> None:
        super().__init__(request_log.SPEC)

    async def audit(self, auth: AuthContext) -> list[tuple[str, str]]:
        noted = store.store(self.config.name).table(request_log.Requests).audit
        return [(action, subject) for tenant, action, subject in noted if tenant == auth.tenant]


HarnessT = TypeVar("HarnessT", bound=InprocHarness[Any])


@asynccontextmanager
async def closing(harness: HarnessT) -> AsyncIterator[HarnessT]:
    try:
        yield harness
    finally:
        await harness.close()
