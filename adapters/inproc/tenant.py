"""TenantDirectory in this process."""

import hmac
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.store import InprocConfig, Store, page_size, store
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict, InvalidArgument, NotFound
from ports.ids import KeyId, PrincipalId, TenantId, is_tenant_id
from ports.messages import Page
from ports.privacy import erased_name
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

_PLATFORM: Final = "admin:platform"
_TENANT: Final = "admin:tenant"
_PRINCIPAL_CURSOR: Final = "principals"
_TENANT_CURSOR: Final = "tenants"
_KEY_CURSOR: Final = "keys"
_MAX_PAGE: Final = 200


class TenantCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@dataclass(slots=True)
class Tenants:
    """A table of a `Store`."""

    rows: dict[TenantId, Tenant] = field(default_factory=dict)
    keys: dict[KeyId, tuple[ApiKey, bytes]] = field(default_factory=dict)
    """Each key with the SHA-256 of its secret."""
    erased: dict[TenantId, str] = field(default_factory=dict)
    """Ids that nobody gets again, with the export that was made before."""
    acting: dict[tuple[TenantId, TenantId, PrincipalId], Acting] = field(default_factory=dict)
    """By the tenant that is acted for, and who acts."""
    principals: dict[tuple[TenantId, PrincipalId], Principal] = field(default_factory=dict)

    def entitlements(self, tenant: TenantId) -> Entitlements:
        """The tenant's, or the defaults where nobody created it here."""
        found = self.rows.get(tenant)
        return Entitlements() if found is None else found.entitlements

    def holder(self, tenant: TenantId, principal: PrincipalId) -> Principal | None:
        """What is kept of it. Who was erased is known by the name of the tombstone, unless it was put again."""
        found = self.principals.get((tenant, principal))
        if found is None:
            found = self.principals.get((tenant, PrincipalId(erased_name(tenant, principal))))
        return None if found is None else replace(found, id=principal)


class InprocTenants:
    """Satisfies `TenantDirectory`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._tenants = storage.table(Tenants)
        self._clock = clock

    async def create(self, auth: AuthContext, tenant: TenantId, *, name: str, entitlements: Entitlements) -> Tenant:
        auth.require(_PLATFORM)
        if not is_tenant_id(tenant):
            raise InvalidArgument(f"{tenant!r} can't name a tenant; use tnt_ and lower-case letters, digits, _ or -")
        check_entitlements(entitlements)
        if tenant in self._tenants.erased:
            raise Conflict(f"there was a tenant {tenant!r}, which was erased; its id is not used again")
        if tenant in self._tenants.rows:
            raise Conflict(f"there is a tenant {tenant!r} already")
        made = Tenant(id=tenant, name=name, status="active", entitlements=entitlements, created_at=self._clock.now())
        self._tenants.rows[tenant] = made
        return made

    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant:
        if tenant != auth.tenant:
            auth.require(_PLATFORM)
        return self._row(tenant)

    async def list_tenants(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Tenant]:
        auth.require(_PLATFORM)
        size = page_size(limit, _MAX_PAGE)
        after = "" if cursor is None else decode_cursor(_TENANT_CURSOR, cursor, tuple[str])[0]
        later = [self._tenants.rows[tenant] for tenant in sorted(self._tenants.rows) if tenant > after]
        shown = tuple(later[:size])
        more = len(later) > size
        return Page(items=shown, next_cursor=encode_cursor(_TENANT_CURSOR, (shown[-1].id,)) if more else None)

    async def set_status(self, auth: AuthContext, tenant: TenantId, status: Literal["active", "disabled"]) -> Tenant:
        auth.require(_PLATFORM)
        known = self._row(tenant)
        changed = known if known.status == status else replace(known, status=status, version=known.version + 1)
        self._tenants.rows[tenant] = changed
        return changed

    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        auth.require(_PLATFORM)
        check_entitlements(entitlements)
        known = self._row(tenant)
        check_match(known, entitlements, if_match)
        if known.entitlements == entitlements:
            return known
        changed = replace(known, entitlements=entitlements, version=known.version + 1)
        self._tenants.rows[tenant] = changed
        return changed

    async def issue_key(self, auth: AuthContext, new: NewKey) -> ApiKey:
        self._row(auth.tenant)
        now = self._clock.now()
        self._check_room(auth.tenant)
        key = ApiKey(
            id=KeyId(self._store.mint("key", now)),
            tenant=auth.tenant,
            principal=new.principal,
            scopes=new.scopes,
            roles=new.roles,
            namespace=auth.namespace,
            label=new.label,
            created_at=now,
            expires_at=new.expires_at,
        )
        self._tenants.keys[key.id] = (key, new.secret_sha256)
        return key

    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        known = self._tenants.keys.get(key_id)
        if known is None:
            return None
        key, digest = known
        expired = key.expires_at is not None and key.expires_at <= self._clock.now()
        if not hmac.compare_digest(digest, secret_sha256) or expired or key.revoked_at is not None:
            return None
        holder = self._tenants.holder(key.tenant, key.principal)
        return FoundKey(key=key, tenant_status=self._row(key.tenant).status, holder=holder)

    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None:
        known = self._tenants.keys.get(key_id)
        if known is None or known[0].tenant != auth.tenant:
            raise NotFound(f"there is no key {key_id!r}")
        key, digest = known
        if key.revoked_at is None:
            self._tenants.keys[key_id] = (replace(key, revoked_at=self._clock.now()), digest)

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
        known = self._tenants.keys.get(key_id)
        if known is None or known[0].tenant != auth.tenant:
            raise NotFound(f"there is no key {key_id!r}")
        old, digest = known
        now = self._clock.now()
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise Conflict(f"the key {key_id!r} has ended; issue a new one")
        self._check_room(auth.tenant)
        made = replace(
            old, id=KeyId(self._store.mint("key", now)), created_at=now, expires_at=expires_at, last_used_at=None
        )
        ends = old_until if old.expires_at is None else min(old_until, old.expires_at)
        self._tenants.keys[key_id] = (replace(old, expires_at=ends), digest)
        self._tenants.keys[made.id] = (made, secret_sha256)
        return made

    def _check_room(self, tenant: TenantId) -> None:
        now = self._clock.now()
        keys = (key for key, _ in self._tenants.keys.values() if key.tenant == tenant and key.revoked_at is None)
        if sum(key.expires_at is None or key.expires_at > now for key in keys) >= MAX_KEYS:
            raise too_many_keys(tenant)

    async def get_key(self, auth: AuthContext, key_id: KeyId) -> ApiKey:
        auth.require(_TENANT)
        known = self._tenants.keys.get(key_id)
        if known is None or known[0].tenant != auth.tenant:
            raise NotFound(f"there is no key {key_id!r}")
        return known[0]

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
        self._row(auth.tenant)
        place = (auth.tenant, principal)
        known = self._tenants.principals.get(place)
        kept = Principal(
            id=principal,
            tenant=auth.tenant,
            status=status,
            roles=roles,
            scopes=scopes,
            created_at=self._clock.now() if known is None else known.created_at,
        )
        self._tenants.principals[place] = kept
        return kept

    async def get_principal(self, auth: AuthContext, principal: PrincipalId) -> Principal:
        auth.require(_TENANT)
        found = self._tenants.principals.get((auth.tenant, principal))
        if found is None:
            raise NotFound(f"there is no principal {principal!r}")
        return found

    async def list_principals(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Principal]:
        auth.require(_TENANT)
        size = page_size(limit, _MAX_PAGE)
        after = "" if cursor is None else decode_cursor(_PRINCIPAL_CURSOR, cursor, tuple[str])[0]
        mine = (one for (tenant, _), one in self._tenants.principals.items() if tenant == auth.tenant)
        later = sorted((one for one in mine if one.id > after), key=lambda one: one.id)
        shown = tuple(later[:size])
        more = len(later) > size
        return Page(items=shown, next_cursor=encode_cursor(_PRINCIPAL_CURSOR, (shown[-1].id,)) if more else None)

    async def standing(self, auth: AuthContext) -> Standing:
        known = self._tenants.holder(auth.tenant, auth.principal)
        return Standing(tenant_status=self._row(auth.tenant).status, principal=known)

    async def let_act(
        self, auth: AuthContext, tenant: TenantId, *, actor_tenant: TenantId, principal: PrincipalId
    ) -> None:
        auth.require(_PLATFORM)
        check_actor(tenant, actor_tenant, principal)
        self._row(tenant)
        one = Acting(actor_tenant=actor_tenant, principal=principal, created_at=self._clock.now())
        self._tenants.acting.setdefault((tenant, actor_tenant, principal), one)

    async def end_acting(
        self, auth: AuthContext, tenant: TenantId, *, actor_tenant: TenantId, principal: PrincipalId
    ) -> None:
        auth.require(_PLATFORM)
        self._row(tenant)
        self._tenants.acting.pop((tenant, actor_tenant, principal), None)

    async def list_acting(self, auth: AuthContext, tenant: TenantId) -> tuple[Acting, ...]:
        auth.require(_TENANT if tenant == auth.tenant else _PLATFORM)
        self._row(tenant)
        theirs = (one for (whose, _, _), one in self._tenants.acting.items() if whose == tenant)
        return tuple(sorted(theirs, key=lambda one: (one.actor_tenant, one.principal))[:MAX_ACTING])

    async def acting(self, auth: AuthContext, tenant: TenantId) -> Standing:
        found = self._tenants.rows.get(tenant)
        if found is None or (tenant, auth.tenant, auth.principal) not in self._tenants.acting:
            raise NotFound(f"there is no such tenant for {auth.principal!r}")
        known = self._tenants.holder(tenant, auth.acting_for(tenant).principal)
        return Standing(tenant_status=found.status, principal=known)

    async def keys_used(self, used: Mapping[KeyId, datetime]) -> None:
        for key_id, at in used.items():
            if (known := self._tenants.keys.get(key_id)) is not None:
                key, digest = known
                latest = at if key.last_used_at is None else max(at, key.last_used_at)
                self._tenants.keys[key_id] = (replace(key, last_used_at=latest), digest)

    async def list_keys(
        self, auth: AuthContext, *, limit: int, cursor: str | None = None, namespace: str | None = None
    ) -> Page[ApiKey]:
        size = page_size(limit, _MAX_PAGE)
        after = "" if cursor is None else decode_cursor(_KEY_CURSOR, cursor, tuple[str])[0]
        mine = (key for key, _ in self._tenants.keys.values() if key.tenant == auth.tenant)
        later = sorted(
            (key for key in mine if key.id > after and namespace in {None, key.namespace}), key=lambda key: key.id
        )
        shown = tuple(later[:size])
        more = len(later) > size
        return Page(items=shown, next_cursor=encode_cursor(_KEY_CURSOR, (shown[-1].id,)) if more else None)

    def _row(self, tenant: TenantId) -> Tenant:
        found = self._tenants.rows.get(tenant)
        if found is None:
            raise NotFound(f"there is no tenant {tenant!r}")
        return found


@asynccontextmanager
async def open_tenant(config: InprocConfig, given: Given) -> AsyncIterator[TenantDirectory]:
    yield InprocTenants(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, TenantDirectory]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: TenantCapabilities(), open=open_tenant
)
