"""PrivacyPort in this process, over the other tables of the same storage."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.budget import Books
from adapters.inproc.request_log import Requests
from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import InprocConfig, Store, store
from adapters.inproc.tenant import Tenants
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict, NotFound
from ports.ids import PrincipalId, TenantId
from ports.messages import Page
from ports.privacy import (
    ERASED,
    ERASURE,
    EXPORTED,
    HELD,
    LIFTED,
    MAX_HOLDS,
    SCOPE,
    Erased,
    Hold,
    Item,
    Kind,
    PrivacyPort,
    check_reason,
    everybody,
)
from ports.run_state import TERMINAL

PAGE: Final = 200
BATCH: Final = 500
"""Runs that one call removes at most."""
_EXPORT: Final = "subject"
_ERASE: Final = "erasure"


class Noted(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    principal: str
    action: str
    subject: str


@dataclass(slots=True)
class Holds:
    """A table of a `Store`."""

    rows: dict[str, tuple[TenantId, Hold]] = field(default_factory=dict)
    audit: list[Noted] = field(default_factory=list)

    def holds(self, tenant: TenantId, subject: str) -> bool:
        """Whether the subject's data must stay."""
        return any(owner == tenant and hold.subject in {None, subject} for owner, hold in self.rows.values())


class InprocPrivacy:
    """Satisfies `PrivacyPort`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._clock = clock
        self._holds = storage.table(Holds)
        self._runs = storage.table(Runs)
        self._requests = storage.table(Requests).rows
        self._books = storage.table(Books)
        self._tenants = storage.table(Tenants)

    async def export(self, auth: AuthContext, subject: PrincipalId, *, cursor: str | None = None) -> Page[Item]:
        auth.require(SCOPE)
        begin = 0 if cursor is None else decode_cursor(_EXPORT, cursor, tuple[int])[0]
        if cursor is None:
            self._note(auth, EXPORTED, subject)
        items = self._items(auth.tenant, subject)
        more = len(items) > begin + PAGE
        return Page(
            items=tuple(items[begin : begin + PAGE]),
            next_cursor=encode_cursor(_EXPORT, (begin + PAGE,)) if more else None,
        )

    async def erase(self, auth: AuthContext, subject: PrincipalId, *, cursor: str | None = None) -> Erased:
        auth.require(SCOPE)
        if cursor is not None:
            decode_cursor(_ERASE, cursor, tuple[str])
        if self._holds.holds(auth.tenant, subject):
            raise Conflict(f"{subject!r} is held: see the tenant's holds for why", code="legal_hold")
        theirs = self._runs_of(auth.tenant, subject)
        if cursor is None:
            if unfinished := sum(row.run.status not in TERMINAL for row in theirs.values()):
                raise Conflict(
                    f"{unfinished} runs of {subject!r} have not ended: cancel them, or wait for them", code="runs_open"
                )
            self._note(auth, ERASURE, subject)
        gone = [key for key, row in theirs.items() if row.run.status in TERMINAL][:BATCH]
        for key in gone:
            row = self._runs.rows.pop(key)
            self._runs.keys = {scope: known for scope, known in self._runs.keys.items() if known[1] is not row}
        if len(gone) == BATCH:
            return Erased(runs=BATCH, cursor=encode_cursor(_ERASE, ("run",)))
        requests, texts = self._erase_requests(auth.tenant, subject)
        usage = self._erase_usage(auth.tenant, subject)
        return Erased(
            runs=len(gone), texts=texts, records=requests + usage, keys=self._erase_keys(auth.tenant, subject)
        )

    async def hold(self, auth: AuthContext, subject: PrincipalId | None, *, reason: str) -> Hold:
        auth.require(SCOPE)
        check_reason(reason)
        if len(await self.holds(auth)) >= MAX_HOLDS:
            raise Conflict(f"{MAX_HOLDS} holds are in force; lift some", code="too_many_holds")
        now = self._clock.now()
        hold = Hold(
            id=self._store.mint("hld", now), subject=subject, reason=reason, placed_by=auth.principal, placed_at=now
        )
        self._holds.rows[hold.id] = (auth.tenant, hold)
        self._note(auth, HELD, everybody(subject))
        return hold

    async def lift(self, auth: AuthContext, hold: str) -> None:
        auth.require(SCOPE)
        owner, found = self._holds.rows.get(hold, (None, None))
        if found is None or owner != auth.tenant:
            raise NotFound(f"there is no hold {hold!r} in force")
        del self._holds.rows[hold]
        self._note(auth, LIFTED, everybody(found.subject))

    async def holds(self, auth: AuthContext) -> tuple[Hold, ...]:
        auth.require(SCOPE)
        return tuple(hold for owner, hold in self._holds.rows.values() if owner == auth.tenant)

    def _items(self, tenant: TenantId, subject: str) -> list[Item]:
        found = [
            _item("run", row.run.id, {"run": row.run, "steps": [*row.steps.values()], "events": row.events})
            for row in self._runs_of(tenant, subject).values()
        ]
        found += [
            _item("request", request, written.record)
            for (owner, request), written in self._requests.items()
            if owner == tenant and written.record.principal == subject
        ]
        found += [
            _item("usage", f"{request}/{attempt}", event)
            for (owner, request, attempt), (_, event) in self._books.events.items()
            if owner == tenant and event.principal == subject
        ]
        found += [
            _item("key", key.id, key)
            for key, _ in self._tenants.keys.values()
            if key.tenant == tenant and key.principal == subject
        ]
        return found + [
            _item("audit", str(number), noted)
            for number, noted in enumerate(self._holds.audit)
            if noted.tenant == tenant and subject in {noted.principal, noted.subject}
        ]

    def _runs_of(self, tenant: TenantId, subject: str) -> "dict[tuple[TenantId, str, str], RunRow]":
        return {
            key: row
            for key, row in self._runs.rows.items()
            if row.run.tenant == tenant and row.run.requester.principal == subject
        }

    def _erase_requests(self, tenant: TenantId, subject: str) -> tuple[int, int]:
        records = texts = 0
        for key, written in list(self._requests.items()):
            if key[0] == tenant and written.record.principal == subject:
                records, texts = records + 1, texts + (written.sealed is not None)
                self._requests[key] = replace(written, record=replace(written.record, principal=ERASED), sealed=None)
        return records, texts

    def _erase_usage(self, tenant: TenantId, subject: str) -> int:
        count = 0
        for key, (hold, event) in list(self._books.events.items()):
            if key[0] == tenant and event.principal == subject:
                count += 1
                self._books.events[key] = (hold, replace(event, principal=ERASED, session=""))
        return count

    def _erase_keys(self, tenant: TenantId, subject: str) -> int:
        theirs = [
            name for name, (key, _) in self._tenants.keys.items() if key.tenant == tenant and key.principal == subject
        ]
        for name in theirs:
            del self._tenants.keys[name]
        return len(theirs)

    def _note(self, auth: AuthContext, action: str, subject: str) -> None:
        self._holds.audit.append(Noted(tenant=auth.tenant, principal=auth.principal, action=action, subject=subject))


def _item(kind: Kind, name: str, data: object) -> Item:
    return Item(kind=kind, id=name, data=msgspec.to_builtins(data))


class PrivacyCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@asynccontextmanager
async def open_privacy(config: InprocConfig, given: Given) -> AsyncIterator[PrivacyPort]:
    yield InprocPrivacy(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, PrivacyPort]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: PrivacyCapabilities(), open=open_privacy
)
