"""GatewayConfigurations in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from msgspec import Struct

from adapters.inproc.store import InprocConfig, Store, own, page_size, store
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.cursor import decode_cursor, encode_cursor
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

CURSOR: Final = "gateway_configurations"

Key: TypeAlias = tuple[TenantId, PrincipalId, str]


class GatewayConfigurationCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@dataclass(slots=True)
class Versions:
    """A table of a `Store`."""

    rows: list[Version] = field(default_factory=list)
    """The version n is at n - 1."""
    keys: dict[Key, tuple[str, int]] = field(default_factory=dict)
    """What was asked under each key, and the version it made."""


class InprocGatewayConfigurations:
    """Satisfies `GatewayConfigurations`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._versions = storage.table(Versions)
        self._clock = clock

    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        auth.require(ADMIN_PLATFORM)
        check_draft(draft.document, draft.comment)
        request = request_of("put", draft.document, draft.comment)
        return self._made(auth, key, request) or self._add(
            auth, draft, restores=None, if_match=if_match, under=(key, request)
        )

    async def restore(
        self, auth: AuthContext, version: int, *, comment: str, if_match: int | None, key: str
    ) -> Version:
        auth.require(ADMIN_PLATFORM)
        check_comment(comment)
        request = request_of("restore", str(version), comment)
        if (made := self._made(auth, key, request)) is not None:
            return made
        old = self._one(version)
        draft = Draft(document=old.document, digest=old.digest, comment=comment)
        return self._add(auth, draft, restores=version, if_match=if_match, under=(key, request))

    async def current(self, auth: AuthContext, *, newer_than: int = 0) -> Version | None:
        require_follower(auth)
        rows = self._versions.rows
        return _given(rows[-1]) if rows and rows[-1].version > newer_than else None

    async def get(self, auth: AuthContext, version: int) -> Version:
        require_follower(auth)
        return _given(self._one(version))

    async def list_versions(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Summary]:
        auth.require(ADMIN_PLATFORM)
        size = page_size(limit, MAX_PAGE)
        before = None if cursor is None else decode_cursor(CURSOR, cursor, tuple[int])[0]
        older = [row for row in reversed(self._versions.rows) if before is None or row.version < before]
        shown = tuple(_summary(row) for row in older[:size])
        more = len(older) > size
        return Page(items=shown, next_cursor=encode_cursor(CURSOR, (shown[-1].version,)) if more else None)

    def _made(self, auth: AuthContext, key: str, request: str) -> Version | None:
        """What the key made, if anything."""
        known = self._versions.keys.get((auth.tenant, auth.principal, key))
        if known is None:
            return None
        if known[0] != request:
            raise key_reused()
        return _given(self._one(known[1]))

    def _add(
        self, auth: AuthContext, draft: Draft, *, restores: int | None, if_match: int | None, under: tuple[str, str]
    ) -> Version:
        """`under` is the key, and what was asked."""
        newest = len(self._versions.rows)
        if if_match is not None and if_match != newest:
            raise moved_on(newest, if_match)
        made = Version(
            version=newest + 1,
            digest=draft.digest,
            comment=draft.comment,
            restores=restores,
            created_at=self._clock.now(),
            tenant=auth.tenant,
            principal=auth.principal,
            document=own(draft.document),
        )
        self._versions.rows.append(made)
        key, request = under
        self._versions.keys[auth.tenant, auth.principal, key] = (request, made.version)
        return _given(made)

    def _one(self, version: int) -> Version:
        if not 1 <= version <= len(self._versions.rows):
            raise no_version(version)
        return self._versions.rows[version - 1]


def _given(row: Version) -> Version:
    """A copy that is the caller's."""
    return Version(**{name: getattr(row, name) for name in Summary.__struct_fields__}, document=own(row.document))


def _summary(row: Version) -> Summary:
    return Summary(**{name: getattr(row, name) for name in Summary.__struct_fields__})


@asynccontextmanager
async def open_gateway_configuration(config: InprocConfig, given: Given) -> AsyncIterator[GatewayConfigurations]:
    yield InprocGatewayConfigurations(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, GatewayConfigurations]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: GatewayConfigurationCapabilities(), open=open_gateway_configuration
)
