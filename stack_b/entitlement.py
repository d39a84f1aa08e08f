"""What a tenant may use, at most a few seconds old."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import NotFound, PermissionDenied
from ports.fresh import Fresh
from ports.quota_rules import RequestRates, StreamPlaces
from ports.tenant import Tenant, TenantDirectory


class TenantCache:
    def __init__(self, directory: TenantDirectory, clock: Clock, *, share: int = 1) -> None:
        self._directory = directory
        self._rates = RequestRates(clock, share=share)
        self._streams = StreamPlaces(kind="streamed answers", share=share)
        self._fresh = Fresh(self._read, clock)

    async def tenant(self, auth: AuthContext) -> Tenant:
        """The caller's tenant, asked for once per request: it is counted.

        Raises:
            PermissionDenied: `tenant_disabled`; a tenant that was removed is no different.
            ResourceExhausted: `rate_limited`; it asks too often.
            Unavailable: the directory can't be asked (fail closed).
        """
        known = self._fresh.at_hand(auth)
        tenant = served(await self._fresh.of(auth) if known is None else known[0])
        self._rates.take(tenant.id, tenant.entitlements.requests_per_minute)
        return tenant

    @asynccontextmanager
    async def streaming(self, auth: AuthContext) -> AsyncIterator[None]:
        """Around a streamed answer.

        Raises:
            PermissionDenied, Unavailable: as for `tenant`.
            ResourceExhausted: `concurrency_limited`; it has as many as it may.
        """
        entitled = served(await self._fresh.of(auth)).entitlements
        give_back = self._streams.take(
            auth,
            per_tenant=entitled.max_model_streams,
            per_principal=entitled.max_model_streams_per_principal,
        )
        try:
            yield
        finally:
            give_back()

    async def close(self) -> None:
        await self._fresh.close()

    async def _read(self, auth: AuthContext) -> Tenant | None:
        try:
            return await self._directory.get(auth, auth.tenant)
        except NotFound:
            return None


def served(tenant: Tenant | None) -> Tenant:
    """Raises `PermissionDenied` for one that is not served any more."""
    if tenant is None or tenant.status != "active":
        raise PermissionDenied("the tenant is disabled; ask the operator of this node", code="tenant_disabled")
    return tenant
