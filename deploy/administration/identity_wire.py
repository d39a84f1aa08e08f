"""What the administration of principals and keys says on the wire. A secret is in one answer only: that to its making."""

from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

from ports.context import DEFAULT_NAMESPACE
from ports.ids import KeyId, PrincipalId, TenantId
from ports.tenant import Acting, ApiKey, Principal

RoleName: TypeAlias = Literal["platform_admin", "tenant_admin", "editor", "viewer", "service"]
ROLE_NAMES: Final = get_args(RoleName)

MAX_NAME_CHARS: Final = 128
MAX_LABEL_CHARS: Final = 200
MAX_DAYS: Final = 3_650
MAX_GRACE_MINUTES: Final = 30 * 24 * 60

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
Days: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_DAYS)]


class PutPrincipal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    principal: Annotated[
        Name, Meta(description="Such as svc_shop; tnt_hub/svc_hub for one of another tenant that acts here.")
    ]
    status: Literal["active", "disabled"] = "active"
    roles: Annotated[tuple[RoleName, ...], Meta(max_length=8)] | None = None
    """What its keys and tokens may do at most; null: as they were issued."""


class PutActing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    actor_tenant: Annotated[str, Meta(max_length=64)]
    principal: Name
    allowed: bool


class IssueKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    principal: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    role: RoleName | None = None
    scopes: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=32)] = ()
    """Instead of a role."""
    namespace: Annotated[str, Meta(max_length=64)] = DEFAULT_NAMESPACE
    label: Annotated[str, Meta(max_length=MAX_LABEL_CHARS)] = ""
    expires_in_days: Days | None = None


class IssueOwnKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    principal: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    role: RoleName | None = None
    scopes: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=32)] = ()
    """Instead of a role."""
    label: Annotated[str, Meta(max_length=MAX_LABEL_CHARS)] = ""
    expires_in_days: Days | None = None


class RotateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grace_minutes: Annotated[int, Meta(ge=0, le=MAX_GRACE_MINUTES)] = 24 * 60
    """How long the old one still works."""
    expires_in_days: Days | None = None


class RevokeKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing is to be said."""


class KeyLine(Struct, frozen=True, kw_only=True):
    id: KeyId
    principal: PrincipalId
    namespace: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class KeyPage(Struct, frozen=True, kw_only=True):
    items: tuple[KeyLine, ...]
    next_cursor: str | None
    tenant_id: TenantId
    correlation_id: str


class IssuedKey(Struct, frozen=True, kw_only=True):
    key: KeyLine
    api_key: str
    """Shown this once."""
    tenant_id: TenantId
    correlation_id: str


class Revoked(Struct, frozen=True, kw_only=True):
    revoked: str
    tenant_id: TenantId
    correlation_id: str


class PrincipalView(Struct, frozen=True, kw_only=True):
    principal: Principal
    tenant_id: TenantId
    correlation_id: str


class PrincipalPage(Struct, frozen=True, kw_only=True):
    items: tuple[Principal, ...]
    next_cursor: str | None
    tenant_id: TenantId
    correlation_id: str


class ActingList(Struct, frozen=True, kw_only=True):
    items: tuple[Acting, ...]
    tenant_id: TenantId
    correlation_id: str


def key_line(key: ApiKey) -> KeyLine:
    return KeyLine(
        id=key.id,
        principal=key.principal,
        namespace=key.namespace,
        roles=tuple(sorted(key.roles)),
        scopes=tuple(sorted(key.scopes)),
        label=key.label,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )
