"""GatewayConfigurations over PostgreSQL.

A change and its line in the audit are one statement of a function that the services may call. The table itself they may
only read.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.rows import Row, packed, page_size
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Unavailable
from ports.gateway_configuration import (
    MAX_PAGE,
    Draft,
    GatewayConfigurations,
    Summary,
    Version,
    check_comment,
    check_draft,
    key_reused,
    moved_on,
    no_version,
    request_of,
    require_follower,
)
from ports.ids import PrincipalId, TenantId
from ports.messages import Page

_SQL: Final = load("gateway_configuration")
_CURSOR: Final = "gateway_configurations"
_ATTEMPTS: Final = 16
"""Each is lost only to another change that was made meanwhile."""
_MOST: Final = 2**62


class GatewayConfigurationCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class _LostRaceError(Exception):
    """Another change was made between the look and the change."""


class PostgresGatewayConfigurations:
    """Satisfies `GatewayConfigurations`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        auth.require(ADMIN_PLATFORM)
        check_draft(draft.document, draft.comment)
        said = {"digest": draft.digest, "document": packed(draft.document), "restores": None, "comment": draft.comment}
        return await self._add(auth, said, if_match, key, request_of("put", draft.document, draft.comment))

    async def restore(
        self, auth: AuthContext, version: int, *, comment: str, if_match: int | None, key: str
    ) -> Version:
        auth.require(ADMIN_PLATFORM)
        check_comment(comment)
        said = {"digest": "", "document": None, "restores": _bounded(version), "comment": comment}
        return await self._add(auth, said, if_match, key, request_of("restore", str(version), comment))

    async def current(self, auth: AuthContext, *, newer_than: int = 0) -> Version | None:
        require_follower(auth)
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["current"], {"newer_than": _bounded(newer_than)})
        return None if row is None else _version(row)

    async def get(self, auth: AuthContext, version: int) -> Version:
        require_follower(auth)
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["get"], {"version": _bounded(version)})
        if row is None:
            raise no_version(version)
        return _version(row)

    async def list_versions(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Summary]:
        auth.require(ADMIN_PLATFORM)
        size = page_size(limit, MAX_PAGE)
        before = _MOST if cursor is None else _bounded(decode_cursor(_CURSOR, cursor, tuple[int])[0])
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["list"], {"before": before, "limit": size + 1})
        shown = tuple(Summary(**_said(row)) for row in rows[:size])
        more = len(rows) > size
        return Page(items=shown, next_cursor=encode_cursor(_CURSOR, (shown[-1].version,)) if more else None)

    async def _add(
        self, auth: AuthContext, said: dict[str, Any], if_match: int | None, key: str, request: str
    ) -> Version:
        asked = {
            **said,
            "namespace": auth.namespace,
            "principal": auth.principal,
            "correlation_id": auth.trace.correlation_id,
            "if_match": None if if_match is None else _bounded(if_match),
            "key": key,
            "request": request,
        }
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(_LostRaceError):
                async with self._database.transaction(auth.tenant) as transaction:
                    return await _added(transaction, auth, asked, if_match)
        raise Unavailable("the gateway's configuration is being changed by many at a time; try again")


async def _added(transaction: Transaction, auth: AuthContext, asked: dict[str, Any], if_match: int | None) -> Version:
    whose = {"tenant": auth.tenant, "principal": auth.principal, "key": asked["key"]}
    known = await transaction.row(_SQL["by_key"], whose)
    if known is not None:
        if known["request"] != asked["request"]:
            raise key_reused()
        return _version(known)
    if asked["restores"] is not None and await transaction.row(_SQL["get"], {"version": asked["restores"]}) is None:
        raise no_version(asked["restores"])
    try:
        made = await transaction.row(_SQL["add"], asked)
    except asyncpg.UniqueViolationError as error:
        # Somebody took the number, or a repeat of ours the key: the next look tells which.
        raise _LostRaceError from error
    if made is not None:
        return _version(made)
    newest = await transaction.row(_SQL["newest"], {})
    raise moved_on(0 if newest is None else newest["version"], if_match)


def _bounded(number: int) -> int:
    """Any number a caller may send, as one that the column can be compared with."""
    return max(-1, min(number, _MOST))


def _said(row: Row) -> dict[str, Any]:
    return {
        "version": row["version"],
        "digest": row["digest"],
        "comment": row["comment"],
        "restores": row["restores"],
        "created_at": row["created_at"],
        "tenant": TenantId(row["actor_tenant"]),
        "principal": PrincipalId(row["principal"]),
    }


def _version(row: Row) -> Version:
    return Version(**_said(row), document=row["document"])


@asynccontextmanager
async def open_gateway_configuration(config: PostgresConfig, _given: Given) -> AsyncIterator[GatewayConfigurations]:
    async with open_database(config) as database:
        yield PostgresGatewayConfigurations(database)


SPEC: Final[AdapterSpec[PostgresConfig, GatewayConfigurations]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: GatewayConfigurationCapabilities(), open=open_gateway_configuration
)
