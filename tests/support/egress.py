"""The egress guard as tests open it: with a resolver of their own, and the hosts that tenants are entitled to."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from adapters.egress import open_guarded
from adapters.egress.guard import EgressRules
from adapters.egress.names import Resolve
from conformance.clock import ManualClock
from conformance.people import TENANTS
from ports.context import AuthContext
from ports.egress import EgressPort
from ports.errors import NotFound
from ports.ids import TenantId
from ports.tenant import ALL, Entitlements, Tenant, TenantDirectory


class EntitledTenants:
    """The one call of a `TenantDirectory` that the guard makes."""

    def __init__(self, hosts: Mapping[TenantId, tuple[str, ...]]) -> None:
        self.hosts = dict(hosts)

    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant:
        assert auth.tenant == tenant
        if tenant not in self.hosts:
            raise NotFound(f"there is no tenant {tenant!r}")
        entitled = Entitlements(egress_hosts=self.hosts[tenant])
        return Tenant(id=tenant, name="", status="active", entitlements=entitled, created_at=ManualClock().now())


def tenants(hosts: Mapping[TenantId, tuple[str, ...]] | None = None) -> TenantDirectory:
    """Everybody of the kit may go everywhere, unless it is said otherwise."""
    directory: Any = EntitledTenants(dict.fromkeys(TENANTS, ALL) if hosts is None else hosts)
    return cast("TenantDirectory", directory)


def resolve_to(*addresses: str) -> Resolve:
    async def resolve(_host: str, _port: int) -> tuple[str, ...]:
        return addresses

    return resolve


LOOPBACK: Final = resolve_to("127.0.0.1")


@asynccontextmanager
async def guarded(
    resolve: Resolve = LOOPBACK,
    *,
    private: Collection[tuple[str, int]] = (),
    ports: Collection[int] = (80, 443),
    hosts: Mapping[TenantId, tuple[str, ...]] | None = None,
    ca_file: str = "",
) -> AsyncIterator[EgressPort]:
    rules = EgressRules(private=frozenset(private), ports=frozenset(ports))
    async with open_guarded(rules, tenants(hosts), resolve=resolve, ca_file=ca_file) as port:
        yield port
