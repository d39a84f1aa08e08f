"""AuditLog in this process."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.holds import Holds
from adapters.inproc.store import InprocConfig, Store, page_size, store
from ports.adapter import AdapterSpec, Given
from ports.audit import (
    ERASED,
    KEPT,
    MAX_PAGE,
    MAX_STRETCH,
    SIGN,
    AuditLog,
    Entry,
    Head,
    Link,
    Note,
    Wanted,
    check_note,
    looked,
    no_home,
    require_reader,
)
from ports.audit_rules import FIRST_HASH, is_of, link, matches, ranges
from ports.clock import Clock
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.ids import PrincipalId, TenantId
from ports.messages import Page

CURSOR: Final = "audit"
UPKEEP: Final = AuthContext(
    tenant=TenantId("tnt_system"), principal=PrincipalId("svc_upkeep"), scopes=frozenset({ADMIN_PLATFORM})
)


class AuditCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@dataclass(slots=True)
class Chains:
    """A table of a `Store`."""

    links: dict[TenantId, list[Link]] = field(default_factory=dict)
    """Number n is at n - 1."""

    def of(self, tenant: TenantId) -> list[Link]:
        return self.links.setdefault(tenant, [])


class InprocAuditLog:
    """Satisfies `AuditLog`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._chains = storage.table(Chains)
        self._holds = storage.table(Holds)
        self._clock = clock

    @property
    def homes(self) -> tuple[str, ...]:
        return ()

    def at(self, home: str) -> AuditLog:
        raise no_home(home)

    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        whose = auth.tenant if tenant is None else tenant
        if whose != auth.tenant:
            auth.require(ADMIN_PLATFORM)
        check_note(note)
        self._add(auth, note, whose)

    async def query(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, limit: int, cursor: str | None = None
    ) -> Page[Link]:
        require_reader(auth, tenant)
        size = page_size(limit, MAX_PAGE)
        links = self._chains.of(tenant)
        before = len(links) + 1 if cursor is None else decode_cursor(CURSOR, cursor, tuple[int])[0]
        found = [
            one for one in reversed(links) if one.seq < before and one.entry is not None and matches(one.entry, wanted)
        ]
        self._looked(auth, tenant)
        more = len(found) > size
        return Page(
            items=tuple(found[:size]),
            next_cursor=encode_cursor(CURSOR, (found[size - 1].seq,)) if more else None,
        )

    async def chain(self, auth: AuthContext, tenant: TenantId, *, after: int, limit: int) -> tuple[Link, ...]:
        require_reader(auth, tenant)
        first = max(0, after)
        found = tuple(self._chains.of(tenant)[first : first + page_size(limit, MAX_STRETCH)])
        self._looked(auth, tenant)
        return found

    async def head(self, auth: AuthContext, tenant: TenantId) -> Head:
        require_reader(auth, tenant)
        return self._head(tenant)

    async def heads(self, auth: AuthContext, *, after: TenantId | None = None, limit: int) -> tuple[Head, ...]:
        auth.require(SIGN)
        tenants = sorted(one for one, links in self._chains.links.items() if links and one > (after or ""))
        return tuple(self._head(one) for one in tenants[: page_size(limit, MAX_STRETCH)])

    async def erase(
        self, auth: AuthContext, tenant: TenantId, *, first: int, last: int, principal: PrincipalId | None = None
    ) -> int:
        auth.require(ADMIN_PLATFORM)
        links = self._chains.of(tenant)
        gone = [
            one.seq
            for one in links
            if first <= one.seq <= last
            and one.entry is not None
            and one.entry.action not in KEPT
            and (principal is None or is_of(one.entry, principal))
            and not self._holds.holds(tenant, one.entry.principal)
            and not self._holds.holds(tenant, one.entry.subject)
        ]
        return self._gone(auth, tenant, gone)

    def forget(self, tenant: TenantId, *, before: datetime) -> int:
        """As `erase`, by age; for upkeep."""
        gone = [
            one.seq
            for one in self._chains.of(tenant)
            if one.entry is not None and one.entry.at < before and one.entry.action not in KEPT
        ]
        return self._gone(UPKEEP, tenant, gone)

    def _gone(self, auth: AuthContext, tenant: TenantId, numbers: list[int]) -> int:
        links = self._chains.of(tenant)
        for seq in numbers:
            links[seq - 1] = replace(links[seq - 1], entry=None)
        if numbers:
            self._add(auth, Note(action=ERASED, subject="audit", detail=ranges(numbers)), tenant)
        return len(numbers)

    def _head(self, tenant: TenantId) -> Head:
        links = self._chains.of(tenant)
        return Head(tenant=tenant, seq=len(links), hash=links[-1].hash if links else FIRST_HASH)

    def _looked(self, auth: AuthContext, tenant: TenantId) -> None:
        if tenant != auth.actor_tenant:
            self._add(auth, looked(tenant), tenant)

    def _add(self, auth: AuthContext, note: Note, tenant: TenantId) -> None:
        head = self._head(tenant)
        entry = Entry(
            id=str(uuid.uuid4()),
            at=self._clock.now(),
            tenant=tenant,
            namespace=auth.namespace,
            actor_tenant=auth.actor_tenant,
            principal=auth.principal,
            correlation_id=auth.trace.correlation_id,
            action=note.action,
            subject=note.subject,
            outcome=note.outcome,
            detail=note.detail,
        )
        seq = head.seq + 1
        self._chains.of(tenant).append(Link(seq=seq, hash=link(head.hash, seq, entry), entry=entry))


@asynccontextmanager
async def open_audit(config: InprocConfig, given: Given) -> AsyncIterator[AuditLog]:
    yield InprocAuditLog(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, AuditLog]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: AuditCapabilities(), open=open_audit
)
