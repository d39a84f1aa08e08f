"""The audit of a node with homes: a tenant has a chain in each database that it ever lived in, and all of them are read.

What is done to runs is noted where they are, in the transaction that does it; the rest in the shared database. So none of
the chains is ever copied, and each holds by itself (ADR 0039).
"""

import heapq
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol

from adapters.postgres.engine import Database
from adapters.postgres.rows import page_size
from adapters.postgres.statements import load
from ports.audit import MAX_PAGE, AuditLog, Head, Link, Note, Wanted, no_home, require_reader
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import InvalidArgument, Unavailable
from ports.ids import PrincipalId, TenantId
from ports.messages import Page

_SQL: Final = load("audit")
_CURSOR: Final = "audit_of_homes"


class Chains(AuditLog, Protocol):
    """The audit of one database."""

    async def newest(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, before: int | None, limit: int
    ) -> list[Link]: ...


class AuditOfHomes:
    """Satisfies `AuditLog` over the shared database and those of homes. Its own storage is the shared one."""

    def __init__(self, own: Chains, logs: Mapping[str, Chains], shared: Database) -> None:
        self._own = own
        self._logs = logs
        self._shared = shared

    @property
    def homes(self) -> tuple[str, ...]:
        return tuple(self._logs)

    def at(self, home: str) -> AuditLog:
        if (log := self._logs.get(home)) is None:
            raise no_home(home)
        return log

    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        await self._own.note(auth, note, tenant=tenant)

    async def query(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, limit: int, cursor: str | None = None
    ) -> Page[Link]:
        require_reader(auth, tenant)
        size = page_size(limit, MAX_PAGE)
        reached = None if cursor is None else _reached(cursor)
        stays = await self._stays(tenant)
        if not stays or (cursor is not None and reached is None):
            # A cursor from before the tenant's first move goes on in the one chain that it is of.
            return await self._own.query(auth, tenant, wanted, limit=limit, cursor=cursor)
        found: list[list[Link]] = []
        places: dict[str, int] = {}
        for home in ("", *stays):
            before = None if reached is None else reached.get(home, 0)
            log = self._own if home == "" else self._of(home, tenant)
            links = [] if before == 0 else await log.newest(auth, tenant, wanted, before=before, limit=size + 1)
            places[home] = before if before is not None else links[0].seq + 1 if links else 0
            found.append(links)
        # Each in its own order, whatever the clocks of two databases say.
        merged = list(heapq.merge(*found, key=_at, reverse=True))
        for one in merged[:size]:
            places[one.home] = one.seq
        more = len(merged) > size
        return Page(items=tuple(merged[:size]), next_cursor=encode_cursor(_CURSOR, (places,)) if more else None)

    async def chain(self, auth: AuthContext, tenant: TenantId, *, after: int, limit: int) -> tuple[Link, ...]:
        return await self._own.chain(auth, tenant, after=after, limit=limit)

    async def head(self, auth: AuthContext, tenant: TenantId) -> Head:
        return await self._own.head(auth, tenant)

    async def heads(self, auth: AuthContext, *, after: TenantId | None = None, limit: int) -> tuple[Head, ...]:
        return await self._own.heads(auth, after=after, limit=limit)

    async def erase(
        self, auth: AuthContext, tenant: TenantId, *, first: int, last: int, principal: PrincipalId | None = None
    ) -> int:
        return await self._own.erase(auth, tenant, first=first, last=last, principal=principal)

    def _of(self, home: str, tenant: TenantId) -> Chains:
        if (log := self._logs.get(home)) is None:
            raise Unavailable(
                f"the audit of {tenant} has a chain in the home {home!r}, which is not configured here; add it to "
                "AGENTOS_HOMES and run `agentos redeploy`"
            )
        return log

    async def _stays(self, tenant: TenantId) -> list[str]:
        """Who never moved has none, and does not depend on homes."""
        async with self._shared.transaction(tenant) as transaction:
            return [row["home"] for row in await transaction.rows(_SQL["stays"], {})]


def _reached(cursor: str) -> dict[str, int] | None:
    """How far each chain was shown; None: the cursor is of one chain."""
    try:
        return decode_cursor(_CURSOR, cursor, tuple[dict[str, int]])[0]
    except InvalidArgument:
        return None


def _at(one: Link) -> datetime:
    assert one.entry is not None, "a query gives what is there"
    return one.entry.at
