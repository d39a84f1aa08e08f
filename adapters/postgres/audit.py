"""AuditLog over PostgreSQL. A trigger links what was noted at the end of its transaction; nobody else writes links."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.postgres.audit_homes import AuditOfHomes
from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.rows import Row, actor_of, packed, page_size
from adapters.postgres.statements import load
from adapters.postgres.together import Together
from ports.adapter import AdapterSpec, Given
from ports.audit import (
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
from ports.audit_rules import FIRST_HASH
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.ids import PrincipalId, TenantId
from ports.messages import Json, Page

_SQL: Final = load("audit")
_CURSOR: Final = "audit"
_MOST: Final = 2**62


class AuditCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class _Ask(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    namespace: str
    actor: TenantId
    principal: PrincipalId
    correlation_id: str
    action: str
    subject: str
    outcome: str
    detail: str


class PostgresAuditLog:
    """Satisfies `AuditLog`."""

    def __init__(self, database: Database, home: str = "") -> None:
        self._database = database
        self._home = home
        # Denials come in floods.
        self._noted: Together[_Ask, None] = Together(database, _note)

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
        await self._noted(whose, _ask(auth, note, whose), order=whose)

    async def query(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, limit: int, cursor: str | None = None
    ) -> Page[Link]:
        size = page_size(limit, MAX_PAGE)
        before = None if cursor is None else decode_cursor(_CURSOR, cursor, tuple[int])[0]
        found = await self.newest(auth, tenant, wanted, before=before, limit=size + 1)
        shown = tuple(found[:size])
        more = len(found) > size
        return Page(items=shown, next_cursor=encode_cursor(_CURSOR, (shown[-1].seq,)) if more else None)

    async def newest(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, before: int | None, limit: int
    ) -> list[Link]:
        """Of the entries before that number."""
        action = wanted.action
        prefix = action is not None and action.endswith("*")
        asked = {
            "tenant": tenant,
            "before": _MOST if before is None else _bounded(before),
            "action": None if prefix else _text(action),
            "prefix": _text(action.removesuffix("*")) if action is not None and prefix else None,
            "principal": _text(wanted.principal),
            "subject": _text(wanted.subject),
            "outcome": wanted.outcome,
            "since": wanted.since,
            "until": wanted.until,
            "limit": limit,
        }
        async with self._looking(auth, tenant) as transaction:
            rows = await transaction.rows(_SQL["query"], asked)
        return [_link(row, self._home) for row in rows]

    async def chain(self, auth: AuthContext, tenant: TenantId, *, after: int, limit: int) -> tuple[Link, ...]:
        asked = {"tenant": tenant, "after": _bounded(after), "limit": page_size(limit, MAX_STRETCH)}
        async with self._looking(auth, tenant) as transaction:
            rows = await transaction.rows(_SQL["chain"], asked)
        return tuple(_link(row, self._home) for row in rows)

    async def head(self, auth: AuthContext, tenant: TenantId) -> Head:
        require_reader(auth, tenant)
        async with self._database.transaction(tenant) as transaction:
            row = await transaction.row(_SQL["head"], {"tenant": tenant})
        if row is None:
            return Head(tenant=tenant, seq=0, hash=FIRST_HASH, home=self._home)
        return Head(tenant=tenant, seq=row["seq"], hash=row["hash"].hex(), home=self._home)

    async def heads(self, auth: AuthContext, *, after: TenantId | None = None, limit: int) -> tuple[Head, ...]:
        auth.require(SIGN)
        rows = await self._database.once(_SQL["heads"], {"after": after or "", "limit": page_size(limit, MAX_STRETCH)})
        return tuple(
            Head(tenant=TenantId(row["tenant"]), seq=row["seq"], hash=row["hash"].hex(), home=self._home)
            for row in rows
        )

    async def erase(
        self, auth: AuthContext, tenant: TenantId, *, first: int, last: int, principal: PrincipalId | None = None
    ) -> int:
        auth.require(ADMIN_PLATFORM)
        asked = {
            "tenant": tenant,
            "first": _bounded(first),
            "last": _bounded(last),
            **actor_of(auth),
            "whose": _text(principal),
        }
        async with self._database.transaction(tenant) as transaction:
            row = await transaction.row(_SQL["erase"], asked)
        return 0 if row is None else int(row["gone"])

    @asynccontextmanager
    async def _looking(self, auth: AuthContext, tenant: TenantId) -> AsyncIterator[Transaction]:
        """A transaction that sees the audit of `tenant`, and notes there that somebody from elsewhere looked."""
        require_reader(auth, tenant)
        async with self._database.transaction(tenant) as transaction:
            yield transaction
            if tenant != auth.actor_tenant:
                await _note(transaction, [_ask(auth, looked(tenant), tenant)])


async def _note(transaction: Transaction, asks: Sequence[_Ask]) -> Sequence[None]:
    rows: list[Json] = [{"place": place, **msgspec.structs.asdict(ask)} for place, ask in enumerate(asks)]
    await transaction.rows(_SQL["note"], {"asks": packed(rows)})
    return [None] * len(asks)


def _ask(auth: AuthContext, note: Note, tenant: TenantId) -> _Ask:
    return _Ask(
        tenant=tenant,
        **actor_of(auth),
        action=note.action,
        subject=note.subject,
        outcome=note.outcome,
        detail=note.detail,
    )


def _bounded(number: int) -> int:
    return max(-1, min(number, _MOST))


def _text(asked: str | None) -> str | None:
    """What nothing stored can equal is compared as something else that nothing stored equals."""
    if asked is None or not ("\x00" in asked or any("\ud800" <= c <= "\udfff" for c in asked)):
        return asked
    return "\x01"


def _link(row: Row, home: str) -> Link:
    gone = row["id"] is None
    return Link(seq=row["seq"], hash=row["hash"].hex(), entry=None if gone else _entry(row), home=home)


def _entry(row: Row) -> Entry:
    return Entry(
        id=str(row["id"]),
        at=row["at"],
        tenant=TenantId(row["tenant_id"]),
        namespace=row["namespace"],
        actor_tenant=TenantId(row["actor_tenant"]),
        principal=PrincipalId(row["principal"]),
        action=row["action"],
        subject=row["subject"],
        correlation_id=row["correlation_id"],
        outcome=row["outcome"],
        detail=row["detail"],
    )


@asynccontextmanager
async def open_audit(config: PostgresConfig, _given: Given) -> AsyncIterator[AuditLog]:
    shared = replace(config, homes=())
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(shared))
        if not config.homes:
            yield PostgresAuditLog(database)
            return
        # Without a look for moves: what is noted of a tenant stays where it was written, and is read there for good.
        logs = {
            home: PostgresAuditLog(await stack.enter_async_context(open_database(replace(shared, dsn=dsn))), home)
            for home, dsn in config.homes
        }
        yield AuditOfHomes(PostgresAuditLog(database), logs, database)


SPEC: Final[AdapterSpec[PostgresConfig, AuditLog]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: AuditCapabilities(), open=open_audit
)
