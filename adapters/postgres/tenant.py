"""TenantDirectory over PostgreSQL. Changes are noted in the audit by the same transaction."""

import hmac
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import asyncpg
import msgspec
from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.rows import Row, packed, page_size
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict, InvalidArgument, NotFound
from ports.ids import KeyId, PrincipalId, TenantId, is_tenant_id, minted, uuid_of
from ports.messages import Page
from ports.tenant import ApiKey, Entitlements, FoundKey, NewKey, Tenant, TenantDirectory, check_entitlements

_SQL: Final = load("tenant")
_PLATFORM: Final = "admin:platform"
_TENANT_CURSOR: Final = "tenants"
_KEY_CURSOR: Final = "keys"
_MAX_PAGE: Final = 200


class TenantCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class PostgresTenants:
    """Satisfies `TenantDirectory`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, auth: AuthContext, tenant: TenantId, *, name: str, entitlements: Entitlements) -> Tenant:
        auth.require(_PLATFORM)
        if not is_tenant_id(tenant):
            raise InvalidArgument(f"{tenant!r} can't name a tenant; use tnt_ and lower-case letters, digits, _ or -")
        check_entitlements(entitlements)
        asked = {**_noted(auth), "tenant": tenant, "name": name, "entitlements": packed(entitlements)}
        async with self._database.transaction(tenant) as transaction:
            try:
                row = await transaction.row(_SQL["create"], asked)
            except asyncpg.UniqueViolationError as error:
                if error.constraint_name == "tenants_pkey":
                    raise Conflict(f"there is a tenant {tenant!r} already") from error
                raise
        if row is None:
            raise Conflict(f"there was a tenant {tenant!r}, which was erased; its id is not used again")
        return _tenant(row)

    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant:
        if tenant != auth.tenant:
            auth.require(_PLATFORM)
        return _tenant(await self._one(tenant, "get", {}))

    async def list_tenants(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Tenant]:
        auth.require(_PLATFORM)
        size = page_size(limit, _MAX_PAGE)
        after = "" if cursor is None else decode_cursor(_TENANT_CURSOR, cursor, tuple[str])[0]
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["list"], {"after": after, "limit": size + 1})
        shown = tuple(_tenant(row) for row in rows[:size])
        more = len(rows) > size
        return Page(items=shown, next_cursor=encode_cursor(_TENANT_CURSOR, (shown[-1].id,)) if more else None)

    async def set_status(self, auth: AuthContext, tenant: TenantId, status: Literal["active", "disabled"]) -> Tenant:
        auth.require(_PLATFORM)
        return _tenant(await self._one(tenant, "set_status", {**_noted(auth), "status": status}))

    async def set_entitlements(self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements) -> Tenant:
        auth.require(_PLATFORM)
        check_entitlements(entitlements)
        # Which rules held when is for the audit: it names the version that was set, or that there are none any more.
        policy = f"{tenant}@{entitlements.policy.version or 'none'}"
        asked = {**_noted(auth), "entitlements": packed(entitlements), "policy": policy}
        return _tenant(await self._one(tenant, "set_entitlements", asked))

    async def issue_key(self, auth: AuthContext, new: NewKey) -> ApiKey:
        asked = {
            **_noted(auth),
            "holder": new.principal,
            "scopes": packed(sorted(new.scopes)),
            "roles": packed(sorted(new.roles)),
            "label": new.label,
            "secret_sha256": new.secret_sha256,
            "expires_at": new.expires_at,
        }
        row = await self._one(auth.tenant, "issue_key", asked)
        return _key(row, revocable=True)

    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        found = uuid_of("key", key_id)
        if found is None:
            return None
        async with self._database.transaction() as transaction:
            row = await transaction.row(_SQL["find_key"], {"key": found})
        if row is None or not hmac.compare_digest(row["secret_sha256"], secret_sha256):
            return None
        return FoundKey(key=_key(row, revocable=False), tenant_status=row["tenant_status"])

    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None:
        asked = {**_noted(auth), "tenant": auth.tenant, "key": uuid_of("key", key_id) or uuid.UUID(int=0)}
        async with self._database.transaction(auth.tenant) as transaction:
            if await transaction.row(_SQL["revoke_key"], asked) is None:
                raise NotFound(f"there is no key {key_id!r}")

    async def list_keys(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[ApiKey]:
        size = page_size(limit, _MAX_PAGE)
        after = None if cursor is None else decode_cursor(_KEY_CURSOR, cursor, tuple[uuid.UUID])[0]
        asked = {"tenant": auth.tenant, "after": after, "limit": size + 1}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["list_keys"], asked)
        more = len(rows) > size
        last = uuid.UUID(int=rows[size - 1]["id"].int) if more else None
        return Page(
            items=tuple(_key(row, revocable=True) for row in rows[:size]),
            next_cursor=None if last is None else encode_cursor(_KEY_CURSOR, (last,)),
        )

    async def _one(self, tenant: TenantId, statement: str, asked: dict[str, Any]) -> Row:
        """The row of a statement that has none when there is no such tenant."""
        row = None
        if is_tenant_id(tenant):
            async with self._database.transaction(tenant) as transaction:
                row = await transaction.row(_SQL[statement], {**asked, "tenant": tenant})
        if row is None:
            raise NotFound(f"there is no tenant {tenant!r}")
        return row


def _noted(auth: AuthContext) -> dict[str, Any]:
    """Who does it, for the audit."""
    return {
        "namespace": auth.namespace,
        "actor": auth.tenant,
        "principal": auth.principal,
        "correlation_id": auth.trace.correlation_id,
    }


def _tenant(row: Row) -> Tenant:
    return Tenant(
        id=TenantId(row["tenant_id"]),
        name=row["name"],
        status=row["status"],
        entitlements=msgspec.convert(row["entitlements"], Entitlements),
        created_at=row["created_at"],
    )


def _key(row: Row, *, revocable: bool) -> ApiKey:
    """The key in `row`, which says when it was revoked only where revoked keys are shown."""
    return ApiKey(
        id=KeyId(minted("key", row["id"])),
        tenant=TenantId(row["tenant_id"]),
        principal=PrincipalId(row["principal"]),
        scopes=frozenset(row["scopes"]),
        roles=frozenset(row["roles"]),
        namespace=row["namespace"],
        label=row["label"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"] if revocable else None,
    )


@asynccontextmanager
async def open_tenant(config: PostgresConfig, _given: Given) -> AsyncIterator[TenantDirectory]:
    async with open_database(config) as database:
        yield PostgresTenants(database)


SPEC: Final[AdapterSpec[PostgresConfig, TenantDirectory]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: TenantCapabilities(), open=open_tenant
)
