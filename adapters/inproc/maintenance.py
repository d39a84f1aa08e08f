"""MaintenancePort in this process, over the runs of the same storage."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.audit import InprocAuditLog
from adapters.inproc.budget import Books
from adapters.inproc.holds import Holds
from adapters.inproc.memory import Items
from adapters.inproc.reply_journal import Entries, is_forgotten
from adapters.inproc.request_log import Requests
from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import InprocConfig, Store, store
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.ids import TenantId
from ports.maintenance import MIN_RETENTION, MaintenancePort, Upkeep, check_retention
from ports.privacy import ERASED, DataClass
from ports.run_state import TERMINAL

BATCH: Final = 500
"""Runs that one call removes at most."""


class InprocMaintenance:
    """Satisfies `MaintenancePort`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._runs = storage.table(Runs)
        self._holds = storage.table(Holds)
        self._requests = storage.table(Requests).rows
        self._replies = storage.table(Entries).rows
        self._items = storage.table(Items)
        self._books = storage.table(Books)
        self._audit = InprocAuditLog(storage, clock)
        self._clock = clock

    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        auth.require(RUNS_ANY_TENANT)
        check_retention(retention)
        now = self._clock.now()
        due = (
            key
            for key, row in self._runs.rows.items()
            if is_due(row, now, self._holds.kept(row.run.tenant, "runs", retention))
            and not self._holds.holds(row.run.tenant, row.run.requester.principal)
        )
        old = list(islice(due, BATCH))
        for key in old:
            del self._runs.rows[key]
        kept = {id(row) for row in self._runs.rows.values()}
        self._runs.keys = {scope: known for scope, known in self._runs.keys.items() if id(known[1]) in kept}
        self._forget_requests(now, retention)
        self._keep_for_less(now)
        return Upkeep(runs_removed=len(old), more=len(old) == BATCH)

    def _forget_requests(self, now: datetime, retention: timedelta) -> None:
        for key, written in list(self._requests.items()):
            if self._holds.holds(key[0], written.record.principal):
                continue
            until, age = written.record.kept_until, now - written.record.at
            if age > self._holds.kept(key[0], "requests", retention):
                del self._requests[key]
            elif (until is not None and until <= now) or age > self._holds.kept(key[0], "texts", timedelta.max):
                self._requests[key] = replace(written, sealed=None)
        for entry, reply in list(self._replies.items()):
            if is_forgotten(reply, now):
                del self._replies[entry]

    def _keep_for_less(self, now: datetime) -> None:
        """What tenants have rules of their own for, beside runs, requests and texts."""
        for place, item in list(self._items.rows.items()):
            writer = self._items.writers.get(place, "")
            if self._is_over(place[0], "memory", item.updated_at, now) and not self._holds.holds(place[0], writer):
                del self._items.rows[place]
        for where, (hold, event) in list(self._books.events.items()):
            over = self._is_over(where[0], "usage", self._books.booked_at.get(where, now), now)
            if over and not self._holds.holds(where[0], event.principal):
                nobodys = replace(event, principal=ERASED, session="", correlation_id="")
                self._books.events[where] = (hold, nobodys)
        for tenant in list(self._holds.days):
            kept = self._holds.kept(tenant, "audit", timedelta.max)
            if kept != timedelta.max and not self._holds.of(tenant):
                self._audit.forget(tenant, before=now - kept)

    def _is_over(self, tenant: TenantId, name: DataClass, since: datetime, now: datetime) -> bool:
        return now - since > self._holds.kept(tenant, name, timedelta.max)


def is_due(row: RunRow, now: datetime, retention: timedelta) -> bool:
    """Whether nobody needs the run any more."""
    run = row.run
    return (
        run.status in TERMINAL
        and run.finished_at is not None
        and now - run.created_at > retention
        and now - run.finished_at > MIN_RETENTION
    )


@asynccontextmanager
async def open_maintenance(config: InprocConfig, given: Given) -> AsyncIterator[MaintenancePort]:
    yield InprocMaintenance(store(config.name), given.clock)


class MaintenanceCapabilities(Struct, frozen=True, kw_only=True):
    """None yet."""


SPEC: Final[AdapterSpec[InprocConfig, MaintenancePort]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: MaintenanceCapabilities(), open=open_maintenance
)
