"""TenantDirectory: which tenants exist, what they are entitled to, and which keys speak for them.

Clauses (each has a test in `conformance.tenant`):

* TNT-1  `create` makes an active tenant with the given entitlements; an id already taken raises `Conflict`.
* TNT-2  `get` gives the caller's own tenant; one that does not exist raises `NotFound`.
* TNT-3  `create`, `list_tenants`, `set_status` and `get` of another tenant need the scope `admin:platform`.
* TNT-4  `issue_key` stores the SHA-256 of a secret that only its issuer has seen; nothing gives it back.
* TNT-5  `find_key` gives the key whose id and secret digest match, and None otherwise, revoked and expired keys included.
* TNT-6  `revoke_key` ends a key; revoking again is a no-op; a foreign or absent one raises `NotFound`.
* TNT-7  `list_keys` names the tenant's keys and never a secret.
* TNT-8  `set_entitlements` replaces all of a tenant's entitlements and needs the scope `admin:platform`; there being no
         such tenant raises `NotFound`. Entitlements out of their bounds raise `InvalidArgument`, here and in `create`, and
         change nothing.
"""

from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta, Struct

from ports.context import DEFAULT_NAMESPACE, AuthContext
from ports.egress import HostPattern
from ports.errors import InvalidArgument
from ports.ids import KeyId, PrincipalId, TenantId
from ports.messages import Page
from ports.pii import PiiMode
from ports.policy import Policy

ALL_MODELS: Final = "*"
ALL: Final = ("*",)


MAX_KEPT_DAYS: Final = 90


class StorePrompts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    retention_days: Annotated[int, Meta(ge=1, le=MAX_KEPT_DAYS)]


class Entitlements(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    models: tuple[str, ...] = (ALL_MODELS,)
    """Exact model ids, or `*` alone for every model the node serves."""
    tiers: tuple[str, ...] = ALL
    """Tiers that it may ask for, by their names; `*` alone for every one. What a tier leads to is limited by `models`."""
    backends: tuple[str, ...] = ALL
    """Backends that may see its requests, by their names; `*` alone for every one."""
    regions: tuple[str, ...] = ALL
    """Where its requests may be seen: at backends that declare their regions, and no others than these; `*` alone for
    anywhere."""
    egress_hosts: Annotated[tuple[HostPattern, ...], Meta(max_length=256)] = ALL
    """Hosts that calls made for it may go to, among those that the node allows: names, `*.` and a domain for all below it,
    `*` for every public one. Empty: none."""
    policy: Policy = Policy()
    """Rules of its own, beside those of the node."""
    tokens_per_day: int = 1_000_000
    """Hard budget of prompt and completion tokens per UTC day, across all keys and runs of the tenant."""
    max_active_runs: Annotated[int, Meta(ge=1, le=1_000)] = 50
    """Runs running at a time; what is beyond waits in the queue."""
    runs_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)] = 600
    """Creations: a bucket that holds a minute's worth of them and refills evenly."""
    max_queued_runs: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    weight: Annotated[int, Meta(ge=1, le=1_000)] = 1
    """The tenant's share of the workers while several tenants wait for them, relative to the others' weights."""
    pii: Annotated[dict[Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,31}$")], PiiMode], Meta(max_length=64)] = {}
    """By class of finding (`email`, `secret`, …). What isn't named is redacted."""
    store_prompts: StorePrompts | None = None
    """Keep prompts and answers for some days, redacted and sealed. None: nowhere."""


def check_entitlements(entitlements: Entitlements) -> None:
    """Raise `InvalidArgument` unless each is within its bounds, which decoding alone would check."""
    try:
        msgspec.convert(msgspec.to_builtins(entitlements), Entitlements)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        raise InvalidArgument(f"{place.rstrip('`')}: {reason}") from None


class Tenant(Struct, frozen=True, kw_only=True):
    id: TenantId
    name: str
    status: Literal["active", "disabled"]
    entitlements: Entitlements
    created_at: datetime


class ApiKey(Struct, frozen=True, kw_only=True):
    """A key without its secret."""

    id: KeyId
    tenant: TenantId
    principal: PrincipalId
    scopes: frozenset[str]
    roles: frozenset[str] = frozenset()
    namespace: str = DEFAULT_NAMESPACE
    label: str = ""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class NewKey(Struct, frozen=True, kw_only=True):
    principal: PrincipalId
    scopes: frozenset[str]
    roles: frozenset[str] = frozenset()
    label: str = ""
    secret_sha256: bytes
    expires_at: datetime | None = None


class FoundKey(Struct, frozen=True, kw_only=True):
    key: ApiKey
    tenant_status: Literal["active", "disabled"]


class TenantDirectory(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently."""

    async def create(self, auth: AuthContext, tenant: TenantId, *, name: str, entitlements: Entitlements) -> Tenant: ...

    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant: ...

    async def list_tenants(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Tenant]: ...

    async def set_status(
        self, auth: AuthContext, tenant: TenantId, status: Literal["active", "disabled"]
    ) -> Tenant: ...

    async def set_entitlements(self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements) -> Tenant: ...

    async def issue_key(self, auth: AuthContext, new: NewKey) -> ApiKey:
        """Store a key of the caller's tenant and namespace. The caller made the secret and keeps it."""
        ...

    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        """The one call without an AuthContext: it is how one comes to be. Compares digests in constant time."""
        ...

    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None: ...

    async def list_keys(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[ApiKey]: ...
