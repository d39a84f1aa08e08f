"""PrivacyPort over PostgreSQL: windows of a tenant's rows in their order, so that each call looks at a bounded number.

Nothing is indexed by who it is of: these are questions of a day in a year, and no write shall pay for them. How far an
erasing got is in its tombstone, in the transaction of what it removed. Only the role of administration may do any of it.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.rows import Row, actor_of, packed
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import InvalidArgument
from ports.ids import PrincipalId, TenantId, is_tenant_id, minted, uuid_of
from ports.privacy import (
    BEGUN,
    CLASSES,
    DONE,
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
    check_subject,
    elsewhere,
    erased_name,
    held,
    no_hold,
    no_tenant,
    runs_open,
    too_many_holds,
)

_SQL: Final = load("privacy")
WINDOW: Final = 2_000
"""Rows of a tenant that one call looks at; well within a statement's time."""
RUNS: Final = 200
"""Runs that one call looks at: each may have many events."""
MAX_ERASURES: Final = 200
_BEFORE_ALL: Final = "00000000-0000-0000-0000-000000000000"

_STAGES: Final[tuple[tuple[str, str], ...]] = (
    ("runs", "runs"),
    ("request_contents", "texts"),
    ("requests", "requests"),
    ("usage", "usage"),
    ("model_replies", "replies"),
    ("queue_messages", "replies"),
    ("memory_items", "memory"),
    ("api_keys", "keys"),
    ("audit", "audit"),
)
"""In this order, and what each counts as."""
_ORDER: Final = tuple(stage for stage, _ in _STAGES)
_END: Final = "end"


class PostgresPrivacy:
    """Satisfies `PrivacyPort`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        _check(auth, tenant)
        check_subject(subject)
        asked = {"tenant": tenant, **actor_of(auth), "subject": subject, "name": erased_name(tenant, subject)}
        async with self._database.transaction(tenant) as transaction:
            await transaction.rows(_SQL["lock"], asked)
            [standing] = await transaction.rows(_SQL["standing"], asked)
            if not standing["known"]:
                raise no_tenant(tenant)
            if standing["elsewhere"]:
                raise elsewhere(tenant)
            if standing["held"]:
                raise held(repr(subject))
            row = await transaction.row(_SQL["tombstone"], asked)
            if row is None or row["status"] == "erased":
                if standing["open_runs"]:
                    raise runs_open(subject, standing["open_runs"])
                begun = {"action": BEGUN, "stage": _ORDER[0], "counts": packed(msgspec.to_builtins(Counts()))}
                [row] = await transaction.rows(_SQL["begin"], {**asked, **begun})
            elif row["stage"] == _ORDER[0] and row["after"] is None and standing["open_runs"]:
                raise runs_open(subject, standing["open_runs"])
            return await _go_on(transaction, asked, row)

    async def erasures(self, auth: AuthContext, tenant: TenantId, *, limit: int = MAX_ERASURES) -> tuple[Erasure, ...]:
        _check(auth, tenant)
        if limit < 1:
            raise InvalidArgument(f"limit must be at least 1, not {limit}")
        asked = {"tenant": tenant, "limit": min(limit, MAX_ERASURES)}
        async with self._database.transaction(tenant) as transaction:
            await _known(transaction, tenant)
            return tuple(_erasure(row) for row in await transaction.rows(_SQL["erasures"], asked))

    async def hold(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str) -> Hold:
        _check(auth, tenant)
        check_hold(subject, reason)
        asked = {
            "tenant": tenant, **actor_of(auth), "subject": subject, "reason": reason, "action": HELD, "everybody": EVERYBODY
        }  # fmt: skip
        async with self._database.transaction(tenant) as transaction:
            await transaction.rows(_SQL["lock_upkeep"], asked)
            await transaction.rows(_SQL["lock"], asked)
            await _here(transaction, tenant)
            if len(await transaction.rows(_SQL["holds"], {**asked, "limit": MAX_HOLDS})) == MAX_HOLDS:
                raise too_many_holds()
            [row] = await transaction.rows(_SQL["hold"], asked)
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
            await _here(transaction, tenant)
            told = changes(await _rules(transaction, tenant), days)
            if told:
                await transaction.rows(_SQL["retain"], asked)
                await transaction.rows(_SQL["unretain"], asked)
                await transaction.rows(_SQL["note"], {**asked, "detail": told})

    async def retention(self, auth: AuthContext, tenant: TenantId) -> dict[DataClass, int]:
        _check(auth, tenant)
        async with self._database.transaction(tenant) as transaction:
            return await _rules(transaction, tenant)


async def _go_on(transaction: Transaction, asked: dict[str, Any], row: Row) -> Erasure:
    """The next window of the stage that the tombstone names."""
    stage, counts = str(row["stage"]), msgspec.convert(row["counts"], Counts)
    if stage == _END:
        return await _end(transaction, asked, counts, row["begun_at"])
    removed, after = await _window(transaction, asked, stage, row["after"])
    name = dict(_STAGES)[stage]
    counts = replace(counts, **{name: getattr(counts, name) + removed})
    if after is None:
        place = _ORDER.index(stage) + 1
        stage = _ORDER[place] if place < len(_ORDER) else _END
    kept = {**asked, "stage": stage, "after": after, "counts": packed(msgspec.to_builtins(counts))}
    [row] = await transaction.rows(_SQL["keep"], kept)
    if stage == _END:
        return await _end(transaction, asked, counts, row["begun_at"])
    return _erasure(row)


async def _window(
    transaction: Transaction, asked: dict[str, Any], stage: str, after: str | None
) -> tuple[int, str | None]:
    """How many rows that were, and where to go on; None: they were the last."""
    if stage in {"runs", "requests", "usage"}:
        first = "" if stage == "usage" else _BEFORE_ALL
        limit = RUNS if stage == "runs" else WINDOW
        [row] = await transaction.rows(_SQL[f"erase_{stage}"], {**asked, "after": after or first, "limit": limit})
        return row["removed"], None if row["last"] is None else str(row["last"])
    if stage == "audit":
        first_seq = int(after or 0) + 1
        last_seq = first_seq + WINDOW - 1
        [row] = await transaction.rows(_SQL["erase_audit"], {**asked, "first": first_seq, "last": last_seq})
        return row["removed"], None if last_seq >= (row["head"] or 0) else str(last_seq)
    [row] = await transaction.rows(_SQL["erase_rest"], {**asked, "stage": stage, "limit": WINDOW})
    return row["removed"], None if row["removed"] < WINDOW else _BEFORE_ALL


async def _end(transaction: Transaction, asked: dict[str, Any], counts: Counts, begun: datetime) -> Erasure:
    """Unless runs came in between the first call and the moment in which every process knew who was barred."""
    [late] = await transaction.rows(_SQL["late"], {**asked, "begun": begun})
    if late["late"]:
        again = {"stage": _ORDER[0], "after": None, "counts": packed(msgspec.to_builtins(counts))}
        [row] = await transaction.rows(_SQL["keep"], {**asked, **again})
        return _erasure(row)
    await transaction.rows(_SQL["end"], asked)
    told = ", ".join(f"{name} {count}" for name, count in msgspec.structs.asdict(counts).items())
    [row] = await transaction.rows(_SQL["done"], {**asked, "action": DONE, "detail": told})
    return _erasure(row)


async def _known(transaction: Transaction, tenant: TenantId) -> None:
    if await transaction.row(_SQL["known"], {"tenant": tenant}) is None:
        raise no_tenant(tenant)


async def _here(transaction: Transaction, tenant: TenantId) -> None:
    """What is removed where the tenant's home is looks for holds and rules there, and would find none."""
    row = await transaction.row(_SQL["known"], {"tenant": tenant})
    if row is None:
        raise no_tenant(tenant)
    if row["elsewhere"]:
        raise elsewhere(tenant)


async def _rules(transaction: Transaction, tenant: TenantId) -> dict[DataClass, int]:
    await _known(transaction, tenant)
    found = {row["class"]: row["days"] for row in await transaction.rows(_SQL["rules"], {"tenant": tenant})}
    return {name: found[name] for name in CLASSES if name in found}


def _check(auth: AuthContext, tenant: TenantId) -> None:
    auth.require(ADMIN_PLATFORM)
    if not is_tenant_id(tenant):
        raise no_tenant(tenant)


def _erasure(row: Row) -> Erasure:
    return Erasure(
        name=row["name"],
        status=row["status"],
        begun_at=row["begun_at"],
        erased_at=row["erased_at"],
        counts=msgspec.convert(row["counts"], Counts),
    )


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
    async with open_database(config) as database:
        yield PostgresPrivacy(database)


SPEC: Final[AdapterSpec[PostgresConfig, PrivacyPort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: PrivacyCapabilities(), open=open_privacy
)
