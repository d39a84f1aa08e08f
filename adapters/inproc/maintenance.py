"""MaintenancePort in this process, over the runs of the same storage."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.privacy import Holds
from adapters.inproc.reply_journal import Entries, is_forgotten
from adapters.inproc.request_log import Requests
from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import InprocConfig, Store, store
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.maintenance import MIN_RETENTION, MaintenancePort, Upkeep, check_retention
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
        self._clock = clock

    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        auth.require(RUNS_ANY_TENANT)
        check_retention(retention)
        now = self._clock.now()
        due = (
            key
            for key, row in self._runs.rows.items()
            if is_due(row, now, retention) and not self._holds.holds(row.run.tenant, row.run.requester.principal)
        )
        old = list(islice(due, BATCH))
        for key in old:
            del self._runs.rows[key]
        kept = {id(row) for row in self._runs.rows.values()}
        self._runs.keys = {scope: known for scope, known in self._runs.keys.items() if id(known[1]) in kept}
        self._forget_requests(now, retention)
        return Upkeep(runs_removed=len(old), more=len(old) == BATCH)

    def _forget_requests(self, now: datetime, retention: timedelta) -> None:
        for key, written in list(self._requests.items()):
            if self._holds.holds(key[0], written.record.principal):
                continue
            until = written.record.kept_until
            if now - written.record.at > retention:
                del self._requests[key]
            elif written.sealed is not None and until is not None and until <= now:
                self._requests[key] = replace(written, sealed=None)
        for entry, reply in list(self._replies.items()):
            if is_forgotten(reply, now):
                del self._replies[entry]


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
