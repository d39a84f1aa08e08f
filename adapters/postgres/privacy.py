"""PrivacyPort over PostgreSQL. Only the role of administration may do any of it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.move_tables import SHARED
from adapters.postgres.privacy_erasing import FIRST, Rest, erasure_of, go_on, nothing_yet
from adapters.postgres.privacy_homes import PrivacyOfHomes
from adapters.postgres.rows import Row, actor_of, packed
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import InvalidArgument
from ports.ids import PrincipalId, TenantId, is_tenant_id, minted, uuid_of
from ports.privacy import (
    BEGUN,
    CLASSES,
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
    elsewhere,
    erased_name,
    held,
    hold_released,
    no_hold,
    no_tenant,
    requested_hold,
    runs_open,
    too_many_holds,
)

_SQL: Final = load("privacy")
MAX_ERASURES: Final = 200


class PostgresPrivacy:
    """Satisfies `PrivacyPort` over one database, and is a part of what does over several (`PrivacyOfHomes`)."""

    def __init__(self, database: Database, *, with_homes: bool = False) -> None:
        """`with_homes`: of tenants that live elsewhere this is a part, and the others are looked after as well."""
        self._database = database
        self._with_homes = with_homes

    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        async with self._asking(auth, tenant, subject) as (transaction, asked):
            return await go_on(transaction, asked, await self._begun(transaction, asked), Rest())

    async def check_erasable(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> None:
        """Raise as `erase` does, and begin nothing."""
        async with self._asking(auth, tenant, subject) as (transaction, asked):
            _check_free(await _standing(transaction, asked), subject)

    async def begun(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure | None:
        """The erasing that is not done."""
        async with self._asking(auth, tenant, subject) as (transaction, asked):
            row = await transaction.row(_SQL["tombstone"], asked)
        return None if row is None or row["status"] == "erased" else erasure_of(row)

    async def begin(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        """The first part of what the first call of `erase` does: the subject is barred, and nothing goes."""
        async with self._asking(auth, tenant, subject) as (transaction, asked):
            return erasure_of(await self._begun(transaction, asked))

    async def finish(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, begun: Erasure, beside: Counts
    ) -> Erasure:
        """The next batch here of an erasing of which all other databases are done; what went there is `beside`."""
        async with self._asking(auth, tenant, subject) as (transaction, asked):
            standing = await _standing(transaction, asked)
            if standing["held"]:
                raise held(repr(subject))
            row = await transaction.row(_SQL["tombstone"], asked)
            assert row is not None, "a tombstone stays"
            if row["status"] == "erased" or row["begun_at"] != begun.begun_at:
                return erasure_of(row)  # somebody else came to its end
            if _is_at_its_first(row):
                _check_free(standing, subject)
            return await go_on(transaction, asked, row, Rest(beside=beside))

    async def erase_there(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, begun_at: datetime
    ) -> Erasure:
        """The next batch, in a home, of the erasing that began in the shared database at that moment; done or not."""
        async with self._asking(auth, tenant, subject) as (transaction, asked):
            standing = await _standing(transaction, asked)
            row = await transaction.row(_SQL["tombstone"], asked)
            if row is None or row["begun_at"] != begun_at:
                _check_free(standing, subject)
                first = {**asked, **nothing_yet(), "action": BEGUN, "begun": begun_at}
                [row] = await transaction.rows(_SQL["begin_there"], first)
            elif row["status"] == "erased":
                return erasure_of(row)
            elif standing["held"]:
                raise held(repr(subject))
            elif _is_at_its_first(row):
                _check_free(standing, subject)
            return await go_on(transaction, asked, row, Rest(directory=False))

    async def erasures(self, auth: AuthContext, tenant: TenantId, *, limit: int = MAX_ERASURES) -> tuple[Erasure, ...]:
        _check(auth, tenant)
        if limit < 1:
            raise InvalidArgument(f"limit must be at least 1, not {limit}")
        asked = {"tenant": tenant, "limit": min(limit, MAX_ERASURES)}
        async with self._database.transaction(tenant) as transaction:
            await _known(transaction, tenant)
            return tuple(erasure_of(row) for row in await transaction.rows(_SQL["erasures"], asked))

    async def erasing_there(self, tenant: TenantId) -> dict[str, Erasure]:
        """What became of erasings here, by name, where this is a home."""
        async with self._database.transaction(tenant) as transaction:
            rows = await transaction.rows(_SQL["erasures"], {"tenant": tenant, "limit": MAX_ERASURES})
        return {row["name"]: erasure_of(row) for row in rows}

    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        _check(auth, tenant)
        check_hold(subject, reason)
        wanted = requested_hold(auth, tenant, request) if request else None
        asked = {
            "tenant": tenant, **actor_of(auth), "subject": subject, "reason": reason, "action": HELD, "everybody": EVERYBODY
        }  # fmt: skip
        async with self._database.transaction(tenant) as transaction:
            await transaction.rows(_SQL["lock_upkeep"], asked)
            await transaction.rows(_SQL["lock"], asked)
            await self._here(transaction, tenant)
            if wanted and (known := await transaction.row(_SQL["one_hold"], {**asked, "hold": wanted})) is not None:
                check_same_hold(_hold(known), subject, reason)
                if known["released_at"] is not None:
                    raise hold_released(_hold(known).id)
                return _hold(known)
            if len(await transaction.rows(_SQL["holds"], {**asked, "limit": MAX_HOLDS})) == MAX_HOLDS:
                raise too_many_holds()
            [row] = await transaction.rows(_SQL["hold"], {**asked, "hold": wanted})
        return _hold(row)

    async def release(self, auth: AuthContext, tenant: TenantId, hold: str) -> Hold:
        _check(auth, tenant)
        found = uuid_of("hld", hold)
        asked = {"tenant": tenant, **actor_of(auth), "hold": found, "action": RELEASED, "everybody": EVERYBODY}
        async with self._database.transaction(tenant) as transaction:
            await _known(transaction, tenant)
            row = None if found is None else await transaction.row(_SQL["release"], asked)
            if row is None:
                raise no_hold(hold)
        return _hold(row)

    async def holds(self, auth: AuthContext, tenant: TenantId) -> tuple[Hold, ...]:
        _check(auth, tenant)
        async with self._database.transaction(tenant) as transaction:
            await _known(transaction, tenant)
            rows = await transaction.rows(_SQL["holds"], {"tenant": tenant, "limit": MAX_HOLDS})
        return tuple(_hold(row) for row in rows)

    async def retain(self, auth: AuthContext, tenant: TenantId, days: Mapping[DataClass, int | None]) -> None:
        _check(auth, tenant)
        check_days(days)
        asked = {
            "tenant": tenant,
            **actor_of(auth),
            "action": RETAINED,
            "days": packed({name: kept for name, kept in days.items() if kept is not None}),
            "classes": packed([name for name, kept in days.items() if kept is None]),
        }
        async with self._database.transaction(tenant) as transaction:
            await transaction.rows(_SQL["lock"], asked)
            await self._here(transaction, tenant)
            told = changes(await _rules(transaction, tenant), days)
            if told:
                await transaction.rows(_SQL["retain"], asked)
                await transaction.rows(_SQL["unretain"], asked)
                await transaction.rows(_SQL["note"], {**asked, "detail": told})

    async def retention(self, auth: AuthContext, tenant: TenantId) -> dict[DataClass, int]:
        _check(auth, tenant)
        async with self._database.transaction(tenant) as transaction:
            return await _rules(transaction, tenant)

    async def _here(self, transaction: Transaction, tenant: TenantId) -> None:
        """What is removed where the tenant's home is looks for holds and rules there, and would find none."""
        row = await transaction.row(_SQL["known"], {"tenant": tenant})
        if row is None:
            raise no_tenant(tenant)
        if row["elsewhere"] and not self._with_homes:
            raise elsewhere(tenant)

    @asynccontextmanager
    async def _asking(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId
    ) -> AsyncIterator[tuple[Transaction, dict[str, Any]]]:
        """A transaction in which nobody places a hold."""
        _check(auth, tenant)
        check_subject(subject)
        asked = {"tenant": tenant, **actor_of(auth), "subject": subject, "name": erased_name(tenant, subject)}
        async with self._database.transaction(tenant) as transaction:
            await transaction.rows(_SQL["lock"], asked)
            yield transaction, asked

    async def _begun(self, transaction: Transaction, asked: dict[str, Any]) -> Row:
        """The tombstone of an erasing that may go on here."""
        tenant, subject = asked["tenant"], asked["subject"]
        standing = await _standing(transaction, asked)
        if not standing["known"]:
            raise no_tenant(tenant)
        if standing["elsewhere"] and not self._with_homes:
            raise elsewhere(tenant)
        if standing["held"]:
            raise held(repr(subject))
        row = await transaction.row(_SQL["tombstone"], asked)
        if row is None or row["status"] == "erased":
            _check_free(standing, subject)
            [row] = await transaction.rows(_SQL["begin"], {**asked, **nothing_yet(), "action": BEGUN})
        elif _is_at_its_first(row):
            _check_free(standing, subject)
        return row


async def _standing(transaction: Transaction, asked: dict[str, Any]) -> Row:
    [row] = await transaction.rows(_SQL["standing"], asked)
    return row


def _check_free(standing: Row, subject: PrincipalId) -> None:
    if standing["held"]:
        raise held(repr(subject))
    if standing["open_runs"]:
        raise runs_open(subject, standing["open_runs"])


def _is_at_its_first(row: Row) -> bool:
    return row["stage"] == FIRST and row["after"] is None


async def _known(transaction: Transaction, tenant: TenantId) -> None:
    if await transaction.row(_SQL["known"], {"tenant": tenant}) is None:
        raise no_tenant(tenant)


async def _rules(transaction: Transaction, tenant: TenantId) -> dict[DataClass, int]:
    await _known(transaction, tenant)
    found = {row["class"]: row["days"] for row in await transaction.rows(_SQL["rules"], {"tenant": tenant})}
    return {name: found[name] for name in CLASSES if name in found}


def _check(auth: AuthContext, tenant: TenantId) -> None:
    auth.require(ADMIN_PLATFORM)
    if not is_tenant_id(tenant):
        raise no_tenant(tenant)


def _hold(row: Row) -> Hold:
    subject = row["subject"]
    return Hold(
        id=minted("hld", row["id"]),
        subject=None if subject is None else PrincipalId(subject),
        reason=row["reason"],
        placed_by=PrincipalId(row["placed_by"]),
        placed_at=row["placed_at"],
    )


class PrivacyCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@asynccontextmanager
async def open_privacy(config: PostgresConfig, _given: Given) -> AsyncIterator[PrivacyPort]:
    shared = replace(config, homes=())
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(open_database(shared))
        if not config.homes:
            yield PostgresPrivacy(own)
            return
        databases = {SHARED: own}
        for name, dsn in config.homes:
            databases[name] = await stack.enter_async_context(open_database(replace(shared, dsn=dsn)))
        places = {name: PostgresPrivacy(one, with_homes=True) for name, one in databases.items()}
        yield PrivacyOfHomes(places, databases)


SPEC: Final[AdapterSpec[PostgresConfig, PrivacyPort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: PrivacyCapabilities(), open=open_privacy
)
