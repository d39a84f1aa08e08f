"""Who asks, in the contracts: two tenants, a second namespace of the first, and the node's own processes."""

from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from ports.context import QUEUE_ANY_TENANT, RUNS_ANY_TENANT, AuthContext, Trace
from ports.ids import PrincipalId, TenantId

_CLIENT: Final = frozenset(
    {
        "runs:create", "runs:read", "runs:cancel", "agents:read", "agents:write", "tools:invoke", "memory:read",
        "memory:write", "models:invoke",
    }
)  # fmt: skip

ACME: Final = AuthContext(
    tenant=TenantId("tnt_acme"),
    principal=PrincipalId("usr_ann"),
    scopes=_CLIENT,
    trace=Trace(correlation_id="corr-acme", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)
ACME_BEN: Final = replace(ACME, principal=PrincipalId("usr_ben"))
ACME_LAB: Final = replace(ACME, namespace="lab")
GLOBEX: Final = AuthContext(
    tenant=TenantId("tnt_globex"),
    principal=PrincipalId("usr_ann"),
    scopes=_CLIENT,
    trace=Trace(correlation_id="corr-globex"),
)

NODE: Final = AuthContext(
    tenant=TenantId("tnt_node"),
    principal=PrincipalId("svc_node"),
    scopes=frozenset({QUEUE_ANY_TENANT, RUNS_ANY_TENANT}),
)
"""A worker: across tenants, and nothing of its own."""

PLATFORM: Final = AuthContext(
    tenant=TenantId("tnt_node"),
    principal=PrincipalId("usr_operator"),
    scopes=frozenset({"admin:platform"}),
)

TENANTS: Final = (ACME.tenant, GLOBEX.tenant, NODE.tenant)


@dataclass(frozen=True, slots=True)
class Foreigner:
    """A caller that must not see what is ACME's in the default namespace."""

    name: str
    auth: AuthContext


FOREIGNERS: Final = (Foreigner("another tenant", GLOBEX), Foreigner("another namespace", ACME_LAB))
