"""ReplyJournal in this process."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from msgspec import Struct

from adapters.inproc.store import InprocConfig, Store, own, store
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument
from ports.ids import PrincipalId, TenantId
from ports.messages import Json
from ports.reply_journal import RETENTION, Busy, Done, Opened, ReplyJournal, Ticket, Won, check_keep

Key: TypeAlias = tuple[TenantId, str, str]
"""Tenant, namespace, step key."""


class ReplyJournalCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@dataclass(slots=True)
class EntryRow:
    digest: str
    lease: str
    lease_until: datetime
    changed_at: datetime
    keep: timedelta
    principal: PrincipalId
    possible_duplicate: bool = False
    cancel_requested: bool = False
    completed: bool = False
    outcome: Json = None


@dataclass(slots=True)
class Entries:
    """A table of a `Store`, in the order in which entries last changed hands or were completed."""

    rows: dict[Key, EntryRow] = field(default_factory=dict)


class InprocReplyJournal:
    """Satisfies `ReplyJournal`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._rows = storage.table(Entries).rows
        self._clock = clock

    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        check_keep(keep)
        now = self._clock.now()
        self._forget(now)
        row = self._rows.get(_key(auth, key))
        if row is not None and is_forgotten(row, now):
            row = None
        if row is not None and row.digest != digest:
            raise _reused(key)
        if row is not None and row.completed:
            return Done(outcome=own(row.outcome))
        if row is not None and row.lease_until > now:
            return Busy(lease_until=row.lease_until)
        made = EntryRow(
            digest=digest,
            lease=secrets.token_hex(16),
            lease_until=now + _positive(lease),
            changed_at=now,
            keep=keep,
            principal=auth.principal,
            possible_duplicate=row is not None,
        )
        self._put(_key(auth, key), made)
        return Won(ticket=Ticket(key=key, lease=made.lease), possible_duplicate=made.possible_duplicate)

    async def extend(self, auth: AuthContext, ticket: Ticket, *, lease: timedelta) -> bool:
        row = self._held(auth, ticket)
        row.lease_until = self._clock.now() + _positive(lease)
        return row.cancel_requested

    async def complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        row = self._rows.get(_key(auth, ticket.key))
        if row is not None and row.completed and row.lease == ticket.lease:
            return
        row = self._held(auth, ticket)
        row.completed, row.outcome, row.changed_at = True, own(outcome), self._clock.now()
        self._put(_key(auth, ticket.key), row)

    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        row = self._held(auth, ticket)
        if maybe_made or row.possible_duplicate:
            row.lease, row.lease_until = "", self._clock.now()
        else:
            del self._rows[_key(auth, ticket.key)]

    async def cancel(self, auth: AuthContext, key: str) -> bool:
        row = self._rows.get(_key(auth, key))
        if row is None or row.completed or row.lease_until <= self._clock.now():
            return False
        row.cancel_requested = True
        return True

    def _held(self, auth: AuthContext, ticket: Ticket) -> EntryRow:
        row = self._rows.get(_key(auth, ticket.key))
        if row is None or row.completed or row.lease != ticket.lease:
            raise Conflict(f"the entry {ticket.key!r} is not held by this ticket any more", code="fenced")
        return row

    def _put(self, key: Key, row: EntryRow) -> None:
        self._rows.pop(key, None)
        self._rows[key] = row

    def _forget(self, now: datetime) -> None:
        """Sweep old entries away, as far as they are the oldest."""
        while self._rows:
            key, row = next(iter(self._rows.items()))
            if not is_forgotten(row, now):
                return
            del self._rows[key]


def is_forgotten(row: EntryRow, now: datetime) -> bool:
    """Whether it is as if there had never been one."""
    return row.changed_at <= now - row.keep and (row.completed or row.lease_until <= now)


def _key(auth: AuthContext, key: str) -> Key:
    return (auth.tenant, auth.namespace, key)


def _positive(lease: timedelta) -> timedelta:
    if lease <= timedelta(0):
        raise InvalidArgument(f"a lease must last longer than nothing, not {lease}")
    return lease


def _reused(key: str) -> Conflict:
    return Conflict(
        f"the step key {key!r} belongs to another request; a step's request never changes, another step has another key",
        code="idempotency_key_reused",
    )


@asynccontextmanager
async def open_reply_journal(config: InprocConfig, given: Given) -> AsyncIterator[ReplyJournal]:
    yield InprocReplyJournal(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, ReplyJournal]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: ReplyJournalCapabilities(), open=open_reply_journal
)
