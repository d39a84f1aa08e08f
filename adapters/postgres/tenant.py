"""TenantDirectory over PostgreSQL. Changes are noted in the audit by the same transaction."""

import hmac
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Literal

import asyncpg
import msgspec
from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.rows import Row, actor_of, packed, page_size
from adapters.postgres.statements import load
from adapters.postgres.tenant_homes import copied_to_homes
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict, InvalidArgument, NotFound
from ports.ids import KeyId, PrincipalId, TenantId, is_tenant_id, minted, uuid_of
from ports.messages import Page
from ports.tenant import (
    MAX_ACTING,
    MAX_KEYS,
    Acting,
    ApiKey,
    Entitlements,
    FoundKey,
    NewKey,
    Principal,
    Standing,
    Tenant,
    TenantDirectory,
    check_actor,
    check_entitlements,
    check_match,
    check_principal,
    too_many_keys,
)

_SQL: Final = load("tenant")
_PLATFORM: Final = "admin:platform"
_TENANT: Final = "admin:tenant"
_PRINCIPAL_CURSOR: Final = "principals"
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
        asked = {**actor_of(auth), "tenant": tenant, "name": name, "entitlements": packed(entitlements)}
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
        return _tenant(await self._one(tenant, "set_status", {**actor_of(auth), "status": status}))

    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        auth.require(_PLATFORM)
        check_entitlements(entitlements)
        # Which rules held when is for the audit: it names the version that was set, or that there are none any more.
        policy = f"{tenant}@{entitlements.policy.version or 'none'}"
        asked = {**actor_of(auth), "entitlements": packed(entitlements), "policy": policy}
        if not is_tenant_id(tenant):
            raise NotFound(f"there is no tenant {tenant!r}")
        async with self._database.transaction(tenant) as transaction:
            row = await transaction.row(_SQL["lock"], {"tenant": tenant})
            if row is None:
                raise NotFound(f"there is no tenant {tenant!r}")
            known = _tenant(row)
            check_match(known, entitlements, if_match)
            if known.entitlements == entitlements:
                # A line of before says the same in other words.
                return known
            [row] = await transaction.rows(_SQL["set_entitlements"], {**asked, "tenant": tenant})
        return _tenant(row)

    async def issue_key(self, auth: AuthContext, new: NewKey) -> ApiKey:
        asked = {
            **actor_of(auth),
            "holder": new.principal,
            "scopes": packed(sorted(new.scopes)),
            "roles": packed(sorted(new.roles)),
            "label": new.label,
            "secret_sha256": new.secret_sha256,
            "expires_at": new.expires_at,
        }
        if not is_tenant_id(auth.tenant):
            raise NotFound(f"there is no tenant {auth.tenant!r}")
        async with self._database.transaction(auth.tenant) as transaction:
            await _check_room(transaction, auth.tenant)
            row = await transaction.row(_SQL["issue_key"], {**asked, "tenant": auth.tenant})
        if row is None:
            raise NotFound(f"there is no tenant {auth.tenant!r}")
        return _key(row, revocable=True)

    async def get_key(self, auth: AuthContext, key_id: KeyId) -> ApiKey:
        auth.require(_TENANT)
        asked = {"tenant": auth.tenant, "key": uuid_of("key", key_id) or uuid.UUID(int=0)}
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["get_key"], asked)
        if row is None:
            raise NotFound(f"there is no key {key_id!r}")
        return _key(row, revocable=True)

    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        found = uuid_of("key", key_id)
        if found is None:
            return None
        async with self._database.transaction() as transaction:
            row = await transaction.row(_SQL["find_key"], {"key": found})
        if row is None or not hmac.compare_digest(row["secret_sha256"], secret_sha256):
            return None
        return FoundKey(
            key=_key(row, revocable=False),
            tenant_status=row["tenant_status"],
            holder=_principal(row, TenantId(row["tenant_id"]), PrincipalId(row["principal"])),
        )

    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None:
        asked = {**actor_of(auth), "tenant": auth.tenant, "key": uuid_of("key", key_id) or uuid.UUID(int=0)}
        async with self._database.transaction(auth.tenant) as transaction:
            if await transaction.row(_SQL["revoke_key"], asked) is None:
                raise NotFound(f"there is no key {key_id!r}")

    async def rotate_key(
        self,
        auth: AuthContext,
        key_id: KeyId,
        *,
        secret_sha256: bytes,
        old_until: datetime,
        expires_at: datetime | None = None,
    ) -> ApiKey:
        auth.require(_TENANT)
        asked = {
            **actor_of(auth),
            "tenant": auth.tenant,
            "key": uuid_of("key", key_id) or uuid.UUID(int=0),
            "secret_sha256": secret_sha256,
            "old_until": old_until,
            "expires_at": expires_at,
        }
        async with self._database.transaction(auth.tenant) as transaction:
            full = await _is_full(transaction, auth.tenant)
            row = await transaction.row(_SQL["rotate_key"], asked)
            if row is None:
                raise NotFound(f"there is no key {key_id!r}")
            if row["id"] is None:
                raise Conflict(f"the key {key_id!r} has ended; issue a new one")
            if full:
                raise too_many_keys(auth.tenant)
        return _key(row, revocable=True)

    async def put_principal(
        self,
        auth: AuthContext,
        principal: PrincipalId,
        *,
        status: Literal["active", "disabled"],
        roles: frozenset[str] | None = None,
        scopes: frozenset[str] | None = None,
    ) -> Principal:
        auth.require(_TENANT)
        check_principal(roles, scopes, principal)
        asked = {
            **actor_of(auth),
            "holder": principal,
            "status": status,
            "roles": None if roles is None else packed(sorted(roles)),
            "scopes": None if scopes is None else packed(sorted(scopes)),
        }
        found = _principal(await self._one(auth.tenant, "put_principal", asked), auth.tenant, principal)
        assert found is not None, "what was put is there"
        return found

    async def get_principal(self, auth: AuthContext, principal: PrincipalId) -> Principal:
        auth.require(_TENANT)
        asked = {"tenant": auth.tenant, "holder": principal}
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["get_principal"], asked)
        found = None if row is None else _principal(row, auth.tenant, principal)
        if found is None:
            raise NotFound(f"there is no principal {principal!r}")
        return found

    async def list_principals(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Principal]:
        auth.require(_TENANT)
        size = page_size(limit, _MAX_PAGE)
        after = "" if cursor is None else decode_cursor(_PRINCIPAL_CURSOR, cursor, tuple[str])[0]
        asked = {"tenant": auth.tenant, "after": after, "limit": size + 1}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["list_principals"], asked)
        found = (_principal(row, auth.tenant, PrincipalId(row["principal"])) for row in rows[:size])
        shown = tuple(one for one in found if one is not None)
        more = len(rows) > size
        return Page(items=shown, next_cursor=encode_cursor(_PRINCIPAL_CURSOR, (shown[-1].id,)) if more else None)

    async def standing(self, auth: AuthContext) -> Standing:
        row = await self._one(auth.tenant, "standing", {"holder": auth.principal})
        return Standing(tenant_status=row["tenant_status"], principal=_principal(row, auth.tenant, auth.principal))

    async def let_act(
        self, auth: AuthContext, tenant: TenantId, *, actor_tenant: TenantId, principal: PrincipalId
    ) -> None:
        auth.require(_PLATFORM)
        check_actor(tenant, actor_tenant, principal)
        await self._one(tenant, "let_act", {**actor_of(auth), "actor_tenant": actor_tenant, "holder": principal})

    async def end_acting(
        self, auth: AuthContext, tenant: TenantId, *, actor_tenant: TenantId, principal: PrincipalId
    ) -> None:
        auth.require(_PLATFORM)
        await self._one(tenant, "end_acting", {**actor_of(auth), "actor_tenant": actor_tenant, "holder": principal})

    async def list_acting(self, auth: AuthContext, tenant: TenantId) -> tuple[Acting, ...]:
        auth.require(_TENANT if tenant == auth.tenant else _PLATFORM)
        await self._one(tenant, "get", {})
        async with self._database.transaction(tenant) as transaction:
            rows = await transaction.rows(_SQL["list_acting"], {"tenant": tenant, "limit": MAX_ACTING})
        return tuple(
            Acting(
                actor_tenant=TenantId(row["actor_tenant"]),
                principal=PrincipalId(row["principal"]),
                created_at=row["created_at"],
            )
            for row in rows
        )

    async def acting(self, auth: AuthContext, tenant: TenantId) -> Standing:
        there = auth.acting_for(tenant)
        asked = {"actor_tenant": auth.tenant, "holder": auth.principal, "acting_as": there.principal}
        try:
            row = await self._one(tenant, "acting", asked)
        except NotFound:
            raise NotFound(f"there is no such tenant for {auth.principal!r}") from None
        return Standing(tenant_status=row["tenant_status"], principal=_principal(row, tenant, there.principal))

    async def keys_used(self, used: Mapping[KeyId, datetime]) -> None:
        found = [
            {"id": str(key), "at": at.isoformat()}
            for name, at in used.items()
            if (key := uuid_of("key", name)) is not None
        ]
        if found:
            async with self._database.transaction() as transaction:
                await transaction.row(_SQL["keys_used"], {"used": packed(found)})

    async def list_keys(
        self, auth: AuthContext, *, limit: int, cursor: str | None = None, namespace: str | None = None
    ) -> Page[ApiKey]:
        size = page_size(limit, _MAX_PAGE)
        after = None if cursor is None else decode_cursor(_KEY_CURSOR, cursor, tuple[uuid.UUID])[0]
        asked = {"tenant": auth.tenant, "after": after, "limit": size + 1, "namespace": namespace}
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


async def _is_full(transaction: Transaction, tenant: TenantId) -> bool:
    await transaction.rows(_SQL["lock_keys"], {"tenant": tenant})
    [room] = await transaction.rows(_SQL["room"], {"tenant": tenant})
    return bool(room["in_force"] >= MAX_KEYS)


async def _check_room(transaction: Transaction, tenant: TenantId) -> None:
    if await _is_full(transaction, tenant):
        raise too_many_keys(tenant)


def _tenant(row: Row) -> Tenant:
    return Tenant(
        id=TenantId(row["tenant_id"]),
        name=row["name"],
        status=row["status"],
        entitlements=msgspec.convert(row["entitlements"], Entitlements),
        created_at=row["created_at"],
        version=row["version"],
    )


def _principal(row: Row, tenant: TenantId, principal: PrincipalId) -> Principal | None:
    """What is kept of it, in a row that has nothing of one never put."""
    if row["holder_status"] is None:
        return None
    roles, scopes = row["holder_roles"], row["holder_scopes"]
    return Principal(
        id=principal,
        tenant=tenant,
        status=row["holder_status"],
        roles=None if roles is None else frozenset(roles),
        scopes=None if scopes is None else frozenset(scopes),
        created_at=row["holder_created_at"],
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
        last_used_at=row["last_used_at"] if revocable else None,
    )


@asynccontextmanager
async def open_tenant(config: PostgresConfig, _given: Given) -> AsyncIterator[TenantDirectory]:
    async with open_database(config) as database:
        yield PostgresTenants(database)


SPEC: Final[AdapterSpec[PostgresConfig, TenantDirectory]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: TenantCapabilities(), open=copied_to_homes(open_tenant)
)
