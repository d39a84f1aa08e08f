"""PrivacyPort over PostgreSQL: windows of a tenant's rows in their order, so that each call looks at a bounded number of them.

Nothing is indexed by who it is of: these are questions of a day in a year, and no write shall pay for them.
"""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from adapters.postgres.blobs import whole
from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.rows import RUN_BODIES, STEP_BODIES, Row, event_of, run_of, step_of
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict, NotFound
from ports.ids import PrincipalId, TenantId, minted, uuid_of
from ports.messages import Json, Page
from ports.privacy import (
    ERASED,
    ERASURE,
    EXPORTED,
    HELD,
    KINDS,
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

_SQL: Final = load("privacy")
WINDOW: Final = 2_000
"""Rows of a tenant that one call looks at; well within a statement's time."""
RUNS: Final = 20
"""Whole runs in one page of an export."""
_FIRST: Final = uuid.UUID(int=0)
_EXPORT: Final = "subject"
_ERASE: Final = "erasure"
_BEFORE_ALL: Final = ("", 0)

Found: TypeAlias = tuple[list[Item], Json]
"""Items, and after what to go on; None: these were the last of their kind."""


class PostgresPrivacy:
    """Satisfies `PrivacyPort`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read: dict[Kind, Callable[[Transaction, TenantId, str, Json], Awaitable[Found]]] = {
            "run": _runs,
            "request": _requests,
            "usage": _usage,
            "key": _keys,
            "audit": _audit,
        }

    async def export(self, auth: AuthContext, subject: PrincipalId, *, cursor: str | None = None) -> Page[Item]:
        auth.require(SCOPE)
        kind, after = KINDS[0], None
        if cursor is not None:
            kind, after = decode_cursor(_EXPORT, cursor, tuple[Kind, Any])
        async with self._database.transaction(auth.tenant) as transaction:
            if cursor is None:
                await _note(transaction, auth, EXPORTED, subject)
            items, last = await self._read[kind](transaction, auth.tenant, subject, after)
        if last is None:
            following = KINDS[KINDS.index(kind) + 1 :]
            return Page(
                items=tuple(items), next_cursor=encode_cursor(_EXPORT, (following[0], None)) if following else None
            )
        return Page(items=tuple(items), next_cursor=encode_cursor(_EXPORT, (kind, last)))

    async def erase(self, auth: AuthContext, subject: PrincipalId, *, cursor: str | None = None) -> Erased:
        auth.require(SCOPE)
        asked = {"tenant": auth.tenant, "subject": subject, "erased": ERASED, "limit": WINDOW}
        stage, after = ("run", None) if cursor is None else decode_cursor(_ERASE, cursor, tuple[Kind, Any])
        async with self._database.transaction(auth.tenant) as transaction:
            await self._unheld(transaction, asked)
            if cursor is None:
                await _none_open(transaction, asked)
                await _note(transaction, auth, ERASURE, subject)
            match stage:
                case "run":
                    [row] = await transaction.rows(_SQL["erase_runs"], {**asked, "after": _place(after)})
                    done, last, following = Erased(runs=row["removed"]), row["last"], "request"
                case "request":
                    [row] = await transaction.rows(_SQL["erase_requests"], {**asked, "after": _place(after)})
                    done = Erased(texts=row["texts"], records=row["records"])
                    last, following = row["last"], "usage"
                case "usage":
                    [row] = await transaction.rows(_SQL["erase_usage"], {**asked, "after": after or ""})
                    done, last, following = Erased(records=row["records"]), row["last"], "key"
                case _:
                    [row] = await transaction.rows(_SQL["erase_keys"], asked)
                    return Erased(keys=row["removed"])
        on = (following, None) if last is None else (stage, str(last))
        return msgspec.structs.replace(done, cursor=encode_cursor(_ERASE, on))

    async def hold(self, auth: AuthContext, subject: PrincipalId | None, *, reason: str) -> Hold:
        auth.require(SCOPE)
        check_reason(reason)
        asked = {"tenant": auth.tenant, "subject": subject, "reason": reason, "principal": auth.principal}
        async with self._database.transaction(auth.tenant) as transaction:
            await transaction.rows(_SQL["lock_holds"], asked)
            if len(await transaction.rows(_SQL["holds"], {**asked, "limit": MAX_HOLDS})) == MAX_HOLDS:
                raise Conflict(f"{MAX_HOLDS} holds are in force; lift some", code="too_many_holds")
            [row] = await transaction.rows(_SQL["hold"], asked)
            await _note(transaction, auth, HELD, everybody(subject))
        return _hold(row)

    async def lift(self, auth: AuthContext, hold: str) -> None:
        auth.require(SCOPE)
        asked = {"tenant": auth.tenant, "hold": uuid_of("hld", hold) or _FIRST}
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["lift"], asked)
            if row is None:
                raise NotFound(f"there is no hold {hold!r} in force")
            await _note(transaction, auth, LIFTED, everybody(row["subject"]))

    async def holds(self, auth: AuthContext) -> tuple[Hold, ...]:
        auth.require(SCOPE)
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["holds"], {"tenant": auth.tenant, "limit": MAX_HOLDS})
        return tuple(_hold(row) for row in rows)

    async def _unheld(self, transaction: Transaction, asked: dict[str, Any]) -> None:
        await transaction.rows(_SQL["lock_holds"], asked)
        [row] = await transaction.rows(_SQL["held"], asked)
        if row["held"]:
            raise Conflict(f"{asked['subject']!r} is held: see the tenant's holds for why", code="legal_hold")


async def _none_open(transaction: Transaction, asked: dict[str, Any]) -> None:
    [row] = await transaction.rows(_SQL["open_runs"], asked)
    if row["open"]:
        raise Conflict(
            f"{row['open']} runs of {asked['subject']!r} have not ended: cancel them, or wait for them",
            code="runs_open",
        )


async def _note(transaction: Transaction, auth: AuthContext, action: str, subject: str) -> None:
    asked = {
        "tenant": auth.tenant,
        "namespace": auth.namespace,
        "principal": auth.principal,
        "action": action,
        "subject": subject,
        "correlation_id": auth.trace.correlation_id,
    }
    await transaction.rows(_SQL["note"], asked)


async def _runs(transaction: Transaction, tenant: TenantId, subject: str, after: Json) -> Found:
    seen, last = await _window(transaction, "runs", tenant, subject, after)
    theirs = [row["id"] for row in seen if row["theirs"]]
    if len(theirs) > RUNS:
        theirs, last = theirs[:RUNS], str(theirs[RUNS - 1])
    return [await _run(transaction, tenant, run) for run in theirs], last


async def _run(transaction: Transaction, tenant: TenantId, run: uuid.UUID) -> Item:
    asked = {"tenant": tenant, "run": run}
    [row] = await whole(transaction, tenant, await transaction.rows(_SQL["run"], asked), RUN_BODIES)
    steps = await whole(transaction, tenant, await transaction.rows(_SQL["steps"], asked), STEP_BODIES)
    events = await whole(transaction, tenant, await transaction.rows(_SQL["events"], asked), ("data",))
    told = {"run": run_of(row), "steps": [step_of(one) for one in steps], "events": [event_of(one) for one in events]}
    return Item(kind="run", id=minted("run", run), data=msgspec.to_builtins(told))


async def _requests(transaction: Transaction, tenant: TenantId, subject: str, after: Json) -> Found:
    seen, last = await _window(transaction, "requests", tenant, subject, after)
    return [_item("request", minted("req", row["id"]), row) for row in seen if row["theirs"]], last


async def _usage(transaction: Transaction, tenant: TenantId, subject: str, after: Json) -> Found:
    request, attempt = after or _BEFORE_ALL
    asked = {"tenant": tenant, "subject": subject, "after": request, "attempt": attempt, "limit": WINDOW}
    seen = await transaction.rows(_SQL["usage"], asked)
    last = (seen[-1]["request_id"], seen[-1]["attempt"]) if len(seen) == WINDOW else None
    return [_item("usage", f"{row['request_id']}/{row['attempt']}", row) for row in seen if row["theirs"]], last


async def _keys(transaction: Transaction, tenant: TenantId, subject: str, after: Json) -> Found:
    seen, last = await _window(transaction, "keys", tenant, subject, after)
    return [_item("key", minted("key", row["id"]), row) for row in seen], last


async def _audit(transaction: Transaction, tenant: TenantId, subject: str, after: Json) -> Found:
    seen, last = await _window(transaction, "audit", tenant, subject, after)
    return [_item("audit", minted("aud", row["id"]), row) for row in seen if row["theirs"]], last


async def _window(
    transaction: Transaction, name: str, tenant: TenantId, subject: str, after: Json
) -> tuple[Sequence[Row], Json]:
    asked = {"tenant": tenant, "subject": subject, "after": _place(after), "limit": WINDOW}
    seen = await transaction.rows(_SQL[name], asked)
    return seen, str(seen[-1]["id"]) if len(seen) == WINDOW else None


def _place(after: Json) -> uuid.UUID:
    return _FIRST if after is None else msgspec.convert(after, uuid.UUID)


def _item(kind: Kind, name: str, row: Row) -> Item:
    return Item(kind=kind, id=name, data=dict(row["data"]))


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
