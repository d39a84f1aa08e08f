"""RequestLog over PostgreSQL: records by day, a batch in one statement."""

import base64
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.literals import BETWEEN, Member, written
from adapters.postgres.rows import Row, packed, page_size, scope_of
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import NotFound
from ports.ids import minted
from ports.messages import Json, Page
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
    first_id,
    request_uuid,
)

_SQL: Final = load("request_log")
_CURSOR: Final = "requests"
WRITERS: Final = 2
"""Connections for what tells only."""
_NOBODY: Final = uuid.UUID(int=0)
_NOT_KEPT: Final = "infinity"
"""The time until when nothing is kept, in a row: it has no other way to say so."""


class RequestLogCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class PostgresRequestLog:
    """Satisfies `RequestLog`."""

    def __init__(self, database: Database, hasty: Database) -> None:
        """`hasty` may forget its last moments with the server."""
        self._database = database
        self._hasty = hasty

    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        check_records(records)
        if not records:
            return
        given = await written(records, _given)
        asked = {"tenant": auth.tenant, "action": DENIED, "records": given, "between": BETWEEN}
        kept = [_sealed(one.record, one.sealed) for one in records if one.sealed is not None]
        # What tells only may be lost with the server; a denial may not.
        denied = any(one.record.denied for one in records)
        async with (self._database if denied else self._hasty).transaction(auth.tenant) as transaction:
            await transaction.rows(_SQL["write"], asked)
            if kept:
                await transaction.rows(_SQL["keep"], {"tenant": auth.tenant, "texts": packed(kept)})

    async def find(self, auth: AuthContext, request: str) -> RequestRecord:
        auth.require(READ)
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["find"], {**scope_of(auth), "id": request_uuid(request) or _NOBODY})
        if row is None:
            raise NotFound(f"there is no request {request!r}")
        return _record(row)

    async def recent(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[RequestRecord]:
        auth.require(READ)
        size = page_size(limit, MAX_PAGE)
        before = None if cursor is None else decode_cursor(_CURSOR, cursor, tuple[uuid.UUID])[0]
        asked = {**scope_of(auth), "before": before, "limit": size + 1}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["recent"], asked)
        shown = tuple(_record(row) for row in rows[:size])
        last = uuid.UUID(int=rows[size - 1]["id"].int) if len(rows) > size else None
        return Page(items=shown, next_cursor=None if last is None else encode_cursor(_CURSOR, (last,)))

    async def content(self, auth: AuthContext, request: str) -> bytes:
        auth.require(READ_CONTENT)
        asked = {
            **scope_of(auth),
            "id": request_uuid(request) or _NOBODY,
            "request": request,
            "principal": auth.principal,
            "action": CONTENT_READ,
            "correlation_id": auth.trace.correlation_id,
        }
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["content"], asked)
        if row is None:
            raise NotFound(f"nothing is kept of the prompt and the answer of {request!r}")
        return bytes(row["sealed"])

    async def counted(self, auth: AuthContext, *, since: datetime) -> tuple[Counted, ...]:
        auth.require(READ)
        # An id is made when a request begins, the same moment that `at` says.
        asked = {**scope_of(auth), "since": since, "first": first_id(since)}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["counted"], asked)
        return tuple(Counted(**dict(row)) for row in rows)


def _given(records: Sequence[Written]) -> list[tuple[Member, ...]]:
    """In the order of `ao_given_record`."""
    found: list[tuple[Member, ...]] = []
    for given in records:
        one = given.record
        found.append((
            one.id, one.at, one.correlation_id, packed(one.attempts), one.prompt_tokens, one.completion_tokens,
            one.cost_nanousd, one.latency_ms, one.kept_until or _NOT_KEPT, one.namespace, one.principal, one.route,
            one.stream, one.model_asked, one.model, one.backend, one.status, one.code, one.denied, one.decision,
            packed(one.reasons) if one.reasons else "[]", one.estimated, one.replayed, one.joined,
        ))  # fmt: skip
    return found


def _sealed(record: RequestRecord, sealed: bytes) -> dict[str, Json]:
    return {"id": record.id, "sealed": base64.b64encode(sealed).decode(), "keep_until": record.kept_until}


def _record(row: Row) -> RequestRecord:
    members: dict[str, Any] = {name: row[name] for name in RequestRecord.__struct_fields__}
    return msgspec.convert({**members, "id": minted("req", row["id"])}, RequestRecord)


@asynccontextmanager
async def open_request_log(config: PostgresConfig, _given: Given) -> AsyncIterator[RequestLog]:
    few = msgspec.structs.replace(config, pool_size=WRITERS)
    async with open_database(config) as database, open_database(few, apart="records", flushed=False) as hasty:
        yield PostgresRequestLog(database, hasty)


SPEC: Final[AdapterSpec[PostgresConfig, RequestLog]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: RequestLogCapabilities(), open=open_request_log
)
