"""Administration in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.holds import Holds
from adapters.inproc.run_state import close_begun
from adapters.inproc.runs import Runs
from adapters.inproc.store import InprocConfig, Store, own, store
from adapters.inproc.tenant import Tenants
from ports.adapter import AdapterSpec, Given
from ports.administration import Administration, Erased, check_erasing, check_reason, still_active, still_running
from ports.clock import Clock
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import NotFound
from ports.ids import RunId, TenantId
from ports.privacy import held
from ports.run_state import TERMINAL, NewEvent, Run


class AdministrationCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class InprocAdministration:
    """Satisfies `Administration`. Erases tenants, keys and runs: what else there is ends with the process."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._clock = clock
        self._tenants = storage.table(Tenants)
        self._runs = storage.table(Runs)
        self._holds = storage.table(Holds)

    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        auth.require(ADMIN_PLATFORM)
        check_reason(reason)
        row = self._runs.row(replace(auth, tenant=tenant, namespace=namespace), run_id)
        if row.run.status not in TERMINAL:
            now = self._clock.now()
            row.run = replace(
                row.run,
                status="cancelled",
                worker=None,
                waits_for=None,
                cancel_requested_at=row.run.cancel_requested_at or now,
                finished_at=now,
            )
            closing = close_begun(row, now)
            row.record(self._store, auth, now, *closing, NewEvent(type="run.cancelled", data={"reason": reason}))
        return own(row.run)

    async def erase(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str, limit: int) -> Erased:
        check_erasing(auth, limit)
        if tenant not in self._tenants.erased:
            self._check(tenant)
        if self._holds.of(tenant):
            raise held(f"something of {tenant}")
        if tenant not in self._tenants.erased:
            self._tenants.erased[tenant] = export_sha256
        removed = 0
        while removed < limit and self._remove_one(tenant):
            removed += 1
        return Erased(removed=removed, done=removed < limit)

    async def exported(self, auth: AuthContext, tenant: TenantId) -> str | None:
        auth.require(ADMIN_PLATFORM)
        return self._tenants.erased.get(tenant)

    def _check(self, tenant: TenantId) -> None:
        known = self._tenants.rows.get(tenant)
        if known is None:
            raise NotFound(f"there is no tenant {tenant!r}")
        if known.status == "active":
            raise still_active(tenant)
        open_runs = sum(key[0] == tenant and row.run.status not in TERMINAL for key, row in self._runs.rows.items())
        if open_runs:
            raise still_running(tenant, open_runs)

    def _remove_one(self, tenant: TenantId) -> bool:
        """The tenant itself goes last."""
        for run in self._runs.rows:
            if run[0] == tenant:
                del self._runs.rows[run]
                return True
        for key_id, (key, _) in self._tenants.keys.items():
            if key.tenant == tenant:
                del self._tenants.keys[key_id]
                return True
        return self._tenants.rows.pop(tenant, None) is not None


@asynccontextmanager
async def open_administration(config: InprocConfig, given: Given) -> AsyncIterator[Administration]:
    yield InprocAdministration(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, Administration]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: AdministrationCapabilities(), open=open_administration
)
