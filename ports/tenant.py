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
* TNT-9  `put_principal` keeps, of a principal of the caller's tenant, whether it is welcome and what its keys and tokens
         may do at most; it replaces what was kept. It, `get_principal` and `list_principals` need the scope `admin:tenant`
         and see the caller's tenant only; one that was never put raises `NotFound`.
* TNT-10 `find_key` and `standing` say what is kept of the key's or the caller's principal, and None of one never put.
* TNT-11 `rotate_key` makes a key like the given one with another secret, and the given one ends with its grace, or before
         where its own end comes first. One that is revoked or expired raises `Conflict`; foreign or absent, `NotFound`.
         It needs the scope `admin:tenant`.
* TNT-12 `let_act` keeps that a principal of another tenant may act for a tenant, `end_acting` that it may not; both need
         the scope `admin:platform`, change nothing the second time, and raise `NotFound` where there is no such tenant.
         `list_acting` tells a tenant's administrator, and the platform, who may.
* TNT-13 `acting` gives the standing that the caller has in a tenant that it may act for, under the name that it has there;
         whoever may not, and whoever asks for a tenant that there is not, gets the same `NotFound`.
* TNT-14 `keys_used` notes when keys were used last, which `list_keys` tells; it never goes back, and an unknown key is
         nothing.
* TNT-15 A tenant's version grows with each change of its entitlements and of its status. `set_entitlements` with an
         `if_match` that is not the version raises `Conflict`, whose details name it as `current`, and changes nothing. Of
         many at the same time with the same `if_match` one wins. What is so already is no change, whatever `if_match` says.
* TNT-16 A tenant has `MAX_KEYS` keys in force at most: beyond, `issue_key` and `rotate_key` raise `Conflict`
         (`too_many_keys`), also of many at once. Revoked and expired ones don't count.
* TNT-17 `get_key` gives a key of the caller's tenant, `list_keys` those of one namespace where it is named; as they are,
         ended ones included. `get_key` needs the scope `admin:tenant`, and a foreign or absent key raises `NotFound`.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from ports.context import DEFAULT_NAMESPACE, SCOPES, AuthContext
from ports.egress import HostPattern
from ports.errors import Conflict, InvalidArgument
from ports.ids import KeyId, PrincipalId, TenantId, is_tenant_id
from ports.messages import Page
from ports.pii import PiiMode
from ports.policy import Policy

ALL_MODELS: Final = "*"
ALL: Final = ("*",)


MAX_ACTING: Final = 1_000
MAX_KEYS: Final = 1_000
"""In force at a time, per tenant."""
MAX_KEPT_DAYS: Final = 90
MAX_PRINCIPAL_CHARS: Final = 255


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
    requests_per_minute: Annotated[int, Meta(ge=1, le=100_000_000)] = 600_000
    """Requests of Stack A's API, and as many of the gateway: a bucket that holds a minute's worth and refills evenly."""
    max_event_streams: Annotated[int, Meta(ge=1, le=100_000)] = 512
    """Streams of runs' events that are open at a time."""
    max_event_streams_per_principal: Annotated[int, Meta(ge=1, le=100_000)] = 64
    max_model_streams: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Streamed answers of models at a time."""
    max_model_streams_per_principal: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
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
    version: int = 1
    """Of what it is entitled to, and whether it is active."""


def check_match(known: Tenant, wanted: Entitlements, if_match: int | None) -> None:
    """Raise `Conflict` where somebody else's change would be lost."""
    if if_match is not None and known.version != if_match and known.entitlements != wanted:
        raise Conflict(
            f"{known.id} is at version {known.version} by now, not {if_match}: look at it, then send your change again",
            details={"current": known.version},
        )


def too_many_keys(tenant: TenantId) -> Conflict:
    return Conflict(f"{tenant} has {MAX_KEYS} keys in force; revoke some that are not used", code="too_many_keys")


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
    last_used_at: datetime | None = None
    """Some minutes ago at most, while it is in use."""


class NewKey(Struct, frozen=True, kw_only=True):
    principal: PrincipalId
    scopes: frozenset[str]
    roles: frozenset[str] = frozenset()
    label: str = ""
    secret_sha256: bytes
    expires_at: datetime | None = None


class Principal(Struct, frozen=True, kw_only=True):
    id: PrincipalId
    tenant: TenantId
    status: Literal["active", "disabled"]
    roles: frozenset[str] | None = None
    scopes: frozenset[str] | None = None
    """What its keys and tokens may do at most, and by which roles; both None: as they were issued."""
    created_at: datetime


class Standing(Struct, frozen=True, kw_only=True):
    """Whether somebody is welcome."""

    tenant_status: Literal["active", "disabled"]
    principal: Principal | None


class Acting(Struct, frozen=True, kw_only=True):
    """Who may act for a tenant."""

    actor_tenant: TenantId
    principal: PrincipalId
    """As it is called at home."""
    created_at: datetime


class FoundKey(Struct, frozen=True, kw_only=True):
    key: ApiKey
    tenant_status: Literal["active", "disabled"]
    holder: Principal | None = None


def bounded(auth: AuthContext, principal: Principal | None) -> AuthContext:
    """`auth` with no more than its principal may do. It never gains a scope."""
    if principal is None or principal.scopes is None:
        return auth
    return replace(auth, scopes=auth.scopes & principal.scopes, roles=principal.roles or frozenset())


def check_actor(tenant: TenantId, actor_tenant: TenantId, principal: PrincipalId) -> None:
    """Raise `InvalidArgument` unless a directory can keep that one acts for the other."""
    check_principal(None, None, principal)
    if not is_tenant_id(actor_tenant):
        raise InvalidArgument(f"{actor_tenant!r} can't name a tenant")
    if actor_tenant == tenant:
        raise InvalidArgument("a tenant's own principals need not act for it")
    if len(f"{actor_tenant}/{principal}") > MAX_PRINCIPAL_CHARS:
        raise InvalidArgument(f"tenant and principal have {MAX_PRINCIPAL_CHARS} characters together, at most")


def check_principal(roles: frozenset[str] | None, scopes: frozenset[str] | None, principal: PrincipalId) -> None:
    """Raise `InvalidArgument` unless a directory can keep this."""
    if not 0 < len(principal) <= MAX_PRINCIPAL_CHARS or not principal.isprintable():
        raise InvalidArgument(f"a principal's name has 1 to {MAX_PRINCIPAL_CHARS} printable characters")
    if (roles is None) != (scopes is None):
        raise InvalidArgument("roles come with the scopes that they mean; give both or neither")
    if scopes is not None and (unknown := scopes - SCOPES):
        raise InvalidArgument(f"there is no scope {min(unknown)!r}")


class TenantDirectory(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently."""

    async def create(self, auth: AuthContext, tenant: TenantId, *, name: str, entitlements: Entitlements) -> Tenant: ...

    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant: ...

    async def list_tenants(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Tenant]: ...

    async def set_status(
        self, auth: AuthContext, tenant: TenantId, status: Literal["active", "disabled"]
    ) -> Tenant: ...

    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        """`if_match` None: whatever is there."""
        ...

    async def issue_key(self, auth: AuthContext, new: NewKey) -> ApiKey:
        """Store a key of the caller's tenant and namespace. The caller made the secret and keeps it."""
        ...

    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        """The one call without an AuthContext: it is how one comes to be. Compares digests in constant time."""
        ...

    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None: ...

    async def rotate_key(
        self,
        auth: AuthContext,
        key_id: KeyId,
        *,
        secret_sha256: bytes,
        old_until: datetime,
        expires_at: datetime | None = None,
    ) -> ApiKey:
        """Both happen or neither does. The new key lives until `expires_at`; None: for ever."""
        ...

    async def put_principal(
        self,
        auth: AuthContext,
        principal: PrincipalId,
        *,
        status: Literal["active", "disabled"],
        roles: frozenset[str] | None = None,
        scopes: frozenset[str] | None = None,
    ) -> Principal: ...

    async def get_principal(self, auth: AuthContext, principal: PrincipalId) -> Principal: ...

    async def list_principals(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Principal]: ...

    async def standing(self, auth: AuthContext) -> Standing:
        """Of the caller. Raises `NotFound` where there is no such tenant."""
        ...

    async def let_act(
        self, auth: AuthContext, tenant: TenantId, *, actor_tenant: TenantId, principal: PrincipalId
    ) -> None: ...

    async def end_acting(
        self, auth: AuthContext, tenant: TenantId, *, actor_tenant: TenantId, principal: PrincipalId
    ) -> None: ...

    async def list_acting(self, auth: AuthContext, tenant: TenantId) -> tuple[Acting, ...]:
        """At most `MAX_ACTING`, by tenant and name."""
        ...

    async def acting(self, auth: AuthContext, tenant: TenantId) -> Standing: ...

    async def keys_used(self, used: Mapping[KeyId, datetime]) -> None:
        """Like `find_key` without an AuthContext: it is what came of it."""
        ...

    async def list_keys(
        self, auth: AuthContext, *, limit: int, cursor: str | None = None, namespace: str | None = None
    ) -> Page[ApiKey]: ...

    async def get_key(self, auth: AuthContext, key_id: KeyId) -> ApiKey: ...
