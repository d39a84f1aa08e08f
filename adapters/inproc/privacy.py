"""PrivacyPort in this process, over the other tables of the same storage."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.audit import Chains, InprocAuditLog
from adapters.inproc.budget import Books
from adapters.inproc.holds import Holds
from adapters.inproc.memory import Items
from adapters.inproc.reply_journal import Entries
from adapters.inproc.request_log import Requests
from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import InprocConfig, Store, page_size, store
from adapters.inproc.tenant import Tenants
from ports.adapter import AdapterSpec, Given
from ports.audit import Note
from ports.clock import Clock
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.ids import PrincipalId, TenantId, minted
from ports.privacy import (
    BEGUN,
    CLASSES,
    DONE,
    ERASED,
    EVERYBODY,
    HELD,
    MAX_HOLDS,
    RELEASED,
    RETAINED,
    Counts,
    DataClass,
    Erasure,
    Hold,
    PrivacyPort,
    changes,
    check_days,
    check_hold,
    check_same_hold,
    check_subject,
    erased_name,
    held,
    hold_released,
    no_hold,
    no_tenant,
    requested_hold,
    runs_open,
    too_many_holds,
)
from ports.run_state import TERMINAL
from ports.tenant import Principal

BATCH: Final = 500
"""Runs that one call removes at most."""
MAX_ERASURES: Final = 200


@dataclass(slots=True)
class Tombstones:
    """A table of a `Store`."""

    rows: dict[tuple[TenantId, str], Erasure] = field(default_factory=dict)


class InprocPrivacy:
    """Satisfies `PrivacyPort`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._clock = clock
        self._holds = storage.table(Holds)
        self._tombstones = storage.table(Tombstones).rows
        self._runs = storage.table(Runs)
        self._requests = storage.table(Requests).rows
        self._books = storage.table(Books)
        self._items = storage.table(Items)
        self._replies = storage.table(Entries).rows
        self._tenants = storage.table(Tenants)
        self._chains = storage.table(Chains)
        self._audit = InprocAuditLog(storage, clock)

    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        self._check(auth, tenant)
        check_subject(subject)
        if self._holds.holds(tenant, subject):
            raise held(repr(subject))
        place = (tenant, erased_name(tenant, subject))
        theirs = self._runs_of(tenant, subject)
        if unfinished := sum(row.run.status not in TERMINAL for row in theirs.values()):
            raise runs_open(subject, unfinished)
        known = self._tombstones.get(place)
        if known is None or known.done:
            known = Erasure(
                name=place[1], status="erasing", begun_at=self._clock.now(), erased_at=None, counts=Counts()
            )
            self._bar(tenant, subject)
            await self._note(auth, tenant, BEGUN, place[1])
        gone = list(islice(theirs, BATCH))
        for key in gone:
            row = self._runs.rows.pop(key)
            self._runs.keys = {scope: kept for scope, kept in self._runs.keys.items() if kept[1] is not row}
        counts = replace(known.counts, runs=known.counts.runs + len(gone))
        self._tombstones[place] = replace(known, counts=counts)
        if len(gone) < BATCH:
            # The rest is little enough for one call.
            counts = await self._rest(auth, tenant, subject, counts)
            self._tenants.principals.pop((tenant, subject), None)
            self._bar(tenant, PrincipalId(place[1]))
            told = ", ".join(f"{name} {count}" for name, count in msgspec.structs.asdict(counts).items())
            self._tombstones[place] = replace(known, status="erased", erased_at=self._clock.now(), counts=counts)
            await self._note(auth, tenant, DONE, place[1], told)
        return self._tombstones[place]

    async def erasures(self, auth: AuthContext, tenant: TenantId, *, limit: int = MAX_ERASURES) -> tuple[Erasure, ...]:
        self._check(auth, tenant)
        mine = [one for (owner, _), one in self._tombstones.items() if owner == tenant]
        mine.sort(key=lambda one: one.begun_at, reverse=True)
        mine.sort(key=lambda one: one.done)
        return tuple(mine[: page_size(limit, MAX_ERASURES)])

    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        self._check(auth, tenant)
        check_hold(subject, reason)
        asked = minted("hld", requested_hold(auth, tenant, request)) if request else ""
        if (known := self._holds.requested.get(asked)) is not None:
            check_same_hold(known, subject, reason)
            if known.id not in self._holds.rows:
                raise hold_released(known.id)
            return known
        if len(self._holds.of(tenant)) >= MAX_HOLDS:
            raise too_many_holds()
        now = self._clock.now()
        hold = Hold(
            id=asked or self._store.mint("hld", now), subject=subject, reason=reason, placed_by=auth.principal,
            placed_at=now,
        )  # fmt: skip
        self._holds.rows[hold.id] = (tenant, hold)
        if asked:
            self._holds.requested[asked] = hold
        await self._note(auth, tenant, HELD, subject or EVERYBODY, hold.id)
        return hold

    async def release(self, auth: AuthContext, tenant: TenantId, hold: str) -> Hold:
        self._check(auth, tenant)
        owner, found = self._holds.rows.get(hold, (None, None))
        if found is None or owner != tenant:
            raise no_hold(hold)
        del self._holds.rows[hold]
        await self._note(auth, tenant, RELEASED, found.subject or EVERYBODY, hold)
        return found

    async def holds(self, auth: AuthContext, tenant: TenantId) -> tuple[Hold, ...]:
        self._check(auth, tenant)
        return self._holds.of(tenant)

    async def retain(self, auth: AuthContext, tenant: TenantId, days: Mapping[DataClass, int | None]) -> None:
        self._check(auth, tenant)
        check_days(days)
        before = self._holds.days.get(tenant, {})
        told = changes(before, days)
        if not told:
            return
        wanted = {**before, **days}
        self._holds.days[tenant] = {name: kept for name, kept in wanted.items() if kept is not None}
        await self._note(auth, tenant, RETAINED, tenant, told)

    async def retention(self, auth: AuthContext, tenant: TenantId) -> dict[DataClass, int]:
        self._check(auth, tenant)
        mine = self._holds.days.get(tenant, {})
        return {name: mine[name] for name in CLASSES if name in mine}

    def _check(self, auth: AuthContext, tenant: TenantId) -> None:
        auth.require(ADMIN_PLATFORM)
        if tenant not in self._tenants.rows:
            raise no_tenant(tenant)

    def _bar(self, tenant: TenantId, name: PrincipalId) -> None:
        known = self._tenants.principals.get((tenant, name))
        barred = Principal(id=name, tenant=tenant, status="disabled", created_at=self._clock.now())
        self._tenants.principals[tenant, name] = barred if known is None else replace(known, status="disabled")

    def _runs_of(self, tenant: TenantId, subject: str) -> dict[tuple[TenantId, str, Any], RunRow]:
        return {
            key: row
            for key, row in self._runs.rows.items()
            if row.run.tenant == tenant and row.run.requester.principal == subject
        }

    async def _rest(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, counts: Counts) -> Counts:
        requests, texts = self._erase_requests(tenant, subject)
        last = len(self._chains.of(tenant))
        return replace(
            counts,
            requests=counts.requests + requests,
            texts=counts.texts + texts,
            usage=counts.usage + self._erase_usage(tenant, subject),
            replies=counts.replies
            + _removed(self._replies, lambda key, row: key[0] == tenant and row.principal == subject),
            memory=counts.memory
            + _removed(self._items.rows, lambda key, _: key[0] == tenant and self._items.writers.get(key) == subject),
            keys=counts.keys
            + _removed(self._tenants.keys, lambda _, kept: kept[0].tenant == tenant and kept[0].principal == subject),
            audit=counts.audit + await self._audit.erase(auth, tenant, first=1, last=last, principal=subject),
        )

    def _erase_requests(self, tenant: TenantId, subject: str) -> tuple[int, int]:
        records = texts = 0
        for key, written in list(self._requests.items()):
            if key[0] == tenant and written.record.principal == subject:
                records, texts = records + 1, texts + (written.sealed is not None)
                nobodys = replace(
                    written.record, principal=PrincipalId(ERASED), correlation_id="", model_asked=written.record.model
                )
                self._requests[key] = replace(written, record=nobodys, sealed=None)
        return records, texts

    def _erase_usage(self, tenant: TenantId, subject: str) -> int:
        count = 0
        for key, (hold, event) in list(self._books.events.items()):
            if key[0] == tenant and event.principal == subject:
                count += 1
                self._books.events[key] = (hold, replace(event, principal=ERASED, session="", correlation_id=""))
        return count

    async def _note(self, auth: AuthContext, tenant: TenantId, action: str, subject: str, detail: str = "") -> None:
        await self._audit.note(auth, Note(action=action, subject=subject, detail=detail), tenant=tenant)


def _removed(rows: dict[Any, Any], theirs: Callable[[Any, Any], bool]) -> int:
    gone = [key for key, row in rows.items() if theirs(key, row)]
    for key in gone:
        del rows[key]
    return len(gone)


class PrivacyCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@asynccontextmanager
async def open_privacy(config: InprocConfig, given: Given) -> AsyncIterator[PrivacyPort]:
    yield InprocPrivacy(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, PrivacyPort]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: PrivacyCapabilities(), open=open_privacy
)
