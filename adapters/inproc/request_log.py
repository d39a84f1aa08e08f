"""RequestLog in this process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final, TypeAlias

from msgspec import Struct

from adapters.inproc.store import InprocConfig, Store, page_size, store
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import NotFound
from ports.ids import TenantId
from ports.messages import Page
from ports.request_log import (
    CONTENT_READ,
    DENIED,
    MAX_PAGE,
    READ,
    READ_CONTENT,
    Counted,
    RequestLog,
    RequestRecord,
    Written,
    check_records,
)

Key: TypeAlias = tuple[TenantId, str]
"""Tenant, request."""
_CURSOR: Final = "requests"


@dataclass(slots=True)
class Requests:
    """A table of a `Store`."""

    rows: dict[Key, Written] = field(default_factory=dict)
    audit: list[tuple[TenantId, str, str]] = field(default_factory=list)
    """Tenant, action, subject."""


class InprocRequestLog:
    """Satisfies `RequestLog`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._table = storage.table(Requests)
        self._clock = clock

    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        check_records(records)
        for written in records:
            key = (auth.tenant, written.record.id)
            if key not in self._table.rows:
                self._table.rows[key] = written
                if written.record.denied:
                    self._note(auth, DENIED, written.record.id)

    async def find(self, auth: AuthContext, request: str) -> RequestRecord:
        auth.require(READ)
        return self._row(auth, request).record

    async def recent(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[RequestRecord]:
        auth.require(READ)
        size = page_size(limit, MAX_PAGE)
        before = None if cursor is None else decode_cursor(_CURSOR, cursor, tuple[str])[0]
        newest = sorted(self._records(auth), key=lambda record: record.id, reverse=True)
        found = [record for record in newest if before is None or record.id < before]
        shown = tuple(found[:size])
        more = len(found) > size
        return Page(items=shown, next_cursor=encode_cursor(_CURSOR, (shown[-1].id,)) if more else None)

    async def content(self, auth: AuthContext, request: str) -> bytes:
        auth.require(READ_CONTENT)
        written = self._row(auth, request)
        until = written.record.kept_until
        if written.sealed is None or until is None or until <= self._clock.now():
            raise _nothing_kept(request)
        self._note(auth, CONTENT_READ, request)
        return written.sealed

    async def counted(self, auth: AuthContext, *, since: datetime) -> tuple[Counted, ...]:
        auth.require(READ)
        sums: dict[tuple[date, str], list[RequestRecord]] = {}
        for record in self._records(auth):
            if record.at >= since:
                sums.setdefault((record.at.date(), record.model), []).append(record)
        return tuple(
            Counted(day=day, model=model, requests=len(records), denied=sum(record.denied for record in records))
            for (day, model), records in sorted(sums.items())
        )

    def _records(self, auth: AuthContext) -> list[RequestRecord]:
        return [
            written.record
            for (tenant, _), written in self._table.rows.items()
            if (tenant, written.record.namespace) == (auth.tenant, auth.namespace)
        ]

    def _row(self, auth: AuthContext, request: str) -> Written:
        written = self._table.rows.get((auth.tenant, request))
        if written is None or written.record.namespace != auth.namespace:
            raise NotFound(f"there is no request {request!r}")
        return written

    def _note(self, auth: AuthContext, action: str, subject: str) -> None:
        self._table.audit.append((auth.tenant, action, subject))


def _nothing_kept(request: str) -> NotFound:
    return NotFound(f"nothing is kept of the prompt and the answer of {request!r}")


class RequestLogCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@asynccontextmanager
async def open_request_log(config: InprocConfig, given: Given) -> AsyncIterator[RequestLog]:
    yield InprocRequestLog(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, RequestLog]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: RequestLogCapabilities(), open=open_request_log
)
