"""AuthContext: who is asking, verified, and nothing secret, so that it may be logged, queued and forwarded.

It is made at the edges only (bearer token, peer certificate, a leased message, the CLI), is the first argument of
every port call, and is never widened and never ambient: what a function may do shows in its signature.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ports.errors import PermissionDenied
from ports.ids import NodeId, PrincipalId, TenantId

# Scopes that clients may hold; a route names one of them.
SCOPES: Final = frozenset(
    {
        "runs:create", "runs:read", "runs:cancel", "agents:read", "agents:write", "tools:invoke", "tools:write",
        "memory:read", "memory:write", "approvals:decide", "usage:read", "audit:read", "admin:tenant",
        "admin:platform", "tenant:act_as", "models:invoke",
    }
)  # fmt: skip

# Scopes of the node's own processes. No token ever carries them.
QUEUE_ANY_TENANT: Final = "queue:any-tenant"
RUNS_ANY_TENANT: Final = "runs:any-tenant"
GATEWAY_FOLLOW: Final = "gateway:follow"
EGRESS_NODE: Final = "egress:node"

ADMIN_PLATFORM: Final = "admin:platform"
TENANT_ACT_AS: Final = "tenant:act_as"

DEFAULT_NAMESPACE: Final = "default"


class PolicyContext(Struct, frozen=True, kw_only=True, gc=False):
    """What governance needs to know beyond identity."""

    classification: str = "internal"
    regions: tuple[str, ...] = ()


class Trace(Struct, frozen=True, kw_only=True, gc=False):
    """Which request this is part of: our correlation id and the W3C `traceparent` it continues."""

    correlation_id: str = ""
    traceparent: str = ""


class AuthContext(Struct, frozen=True, kw_only=True, gc=False):
    tenant: TenantId
    principal: PrincipalId
    scopes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    namespace: str = DEFAULT_NAMESPACE
    policy: PolicyContext = PolicyContext()
    via: tuple[NodeId, ...] = ()
    """Nodes a federated call has passed: for the audit, and for the rule against loops."""
    trace: Trace = Trace()
    home: TenantId | None = None
    """Of who acts for another tenant: the one it belongs to. It is in the principal's name too."""

    @property
    def actor_tenant(self) -> TenantId:
        """Whose principal this is."""
        return self.home or self.tenant

    def acting_for(self, tenant: TenantId) -> "AuthContext":
        """This caller in another tenant: with a name that none of that tenant's own has, and less than it may at home."""
        return replace(
            self,
            tenant=tenant,
            principal=PrincipalId(f"{self.tenant}/{self.principal}"),
            scopes=self.scopes - {ADMIN_PLATFORM, TENANT_ACT_AS},
            home=self.tenant,
        )

    def require(self, scope: str) -> None:
        """Raise `PermissionDenied` unless the caller holds `scope`."""
        if scope not in self.scopes:
            raise PermissionDenied(f"this needs the scope {scope!r}", details={"required_scope": scope})

    def traced(self, trace: Trace) -> "AuthContext":
        """The same identity, on another request."""
        return replace(self, trace=trace)
