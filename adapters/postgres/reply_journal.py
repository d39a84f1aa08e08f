"""ReplyJournal over PostgreSQL: one row per step key; whoever inserts it, or takes over a lapsed one, has won."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.rows import Row, packed, positive, scope_of
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import Conflict
from ports.messages import Json
from ports.reply_journal import RETENTION, Busy, Done, Opened, ReplyJournal, Ticket, Won, check_keep

_SQL: Final = load("reply_journal")
FORGOTTEN_AT_ONCE: Final = 4
"""Old entries swept away by each `open`: more than one, so that they never grow in number."""


class ReplyJournalCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class PostgresReplyJournal:
    """Satisfies `ReplyJournal`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        check_keep(keep)
        entry = {**scope_of(auth), "key": key}
        asked = {**entry, "digest": digest, "lease": positive(lease), "keep": keep, "principal": auth.principal}
        while True:
            async with self._database.transaction(auth.tenant) as transaction:
                won = await transaction.row(_SQL["open"], asked)
                if won is None:
                    found = await transaction.row(_SQL["find"], entry)
                else:
                    # Afterwards, and skipping what is locked: it never waits for another entry while it holds this one.
                    await transaction.row(_SQL["forget"], {"limit": FORGOTTEN_AT_ONCE})
            if won is not None:
                ticket = Ticket(key=key, lease=won["lease"].hex)
                return Won(ticket=ticket, possible_duplicate=won["possible_duplicate"])
            # Neither: it was abandoned between the two statements, and is free now.
            if found is not None:
                return _standing(found, key, digest)

    async def extend(self, auth: AuthContext, ticket: Ticket, *, lease: timedelta) -> bool:
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["extend"], {**_held(auth, ticket), "duration": positive(lease)})
        if row is None:
            raise _fenced(ticket)
        return bool(row["cancel_requested"])

    async def complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["complete"], {**_held(auth, ticket), "outcome": packed(outcome)})
        if row is None or not row["completed"]:
            raise _fenced(ticket)

    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["abandon"], {**_held(auth, ticket), "maybe_made": maybe_made})
        if row is None or not row["abandoned"]:
            raise _fenced(ticket)

    async def cancel(self, auth: AuthContext, key: str) -> bool:
        async with self._database.transaction(auth.tenant) as transaction:
            return await transaction.row(_SQL["cancel"], {**scope_of(auth), "key": key}) is not None


def _held(auth: AuthContext, ticket: Ticket) -> dict[str, Any]:
    return {**scope_of(auth), "key": ticket.key, "lease": uuid.UUID(hex=ticket.lease)}


def _standing(row: Row, key: str, digest: str) -> Opened:
    if row["digest"] != digest:
        raise Conflict(
            f"the step key {key!r} belongs to another request; a step's request never changes, another step has another "
            "key",
            code="idempotency_key_reused",
        )
    return Done(outcome=row["outcome"]) if row["completed"] else Busy(lease_until=row["lease_until"])


def _fenced(ticket: Ticket) -> Conflict:
    return Conflict(f"the entry {ticket.key!r} is not held by this ticket any more", code="fenced")


@asynccontextmanager
async def open_reply_journal(config: PostgresConfig, _given: Given) -> AsyncIterator[ReplyJournal]:
    async with open_database(config) as database:
        yield PostgresReplyJournal(database)


SPEC: Final[AdapterSpec[PostgresConfig, ReplyJournal]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: ReplyJournalCapabilities(), open=open_reply_journal
)
