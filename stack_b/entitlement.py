"""What a tenant may use, at most a few seconds old."""

from collections.abc import Callable
from typing import Final

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import NotFound, PermissionDenied
from ports.fresh import Fresh
from ports.quota_rules import RequestRates, StreamPlaces
from ports.tenant import Tenant, TenantDirectory

_ANY: Final = 2**53


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
        return self.at_hand(auth) or self.counted(await self._fresh.of(auth))

    def at_hand(self, auth: AuthContext) -> Tenant | None:
        """The same where nothing has to be waited for, as mostly. Raises like it; what is not here is not counted."""
        known = self._fresh.at_hand(auth)
        return None if known is None else self.counted(known[0])

    def known(self, auth: AuthContext) -> Tenant | None:
        """The caller's tenant, where it is at hand and served; to be `counted`."""
        known = self._fresh.at_hand(auth)
        found = None if known is None else known[0]
        return found if found is not None and found.status == "active" else None

    def counted(self, found: Tenant | None) -> Tenant:
        """One request more of it. Raises like `tenant`."""
        tenant = found if found is not None and found.status == "active" else _active(found)
        self._rates.take(tenant.id, tenant.entitlements.requests_per_minute)
        return tenant

    def has_room(self, found: Tenant) -> bool:
        """Whether one request more of it may be `counted` now."""
        return self._rates.has_room(found.id, found.entitlements.requests_per_minute)

    def streaming(self, auth: AuthContext) -> "_Streaming":
        """A block around a streamed answer.

        Raises:
            PermissionDenied, Unavailable: as for `tenant`.
            ResourceExhausted: `concurrency_limited`; it has as many as it may.
        """
        return _Streaming(self, auth)

    async def place(self, auth: AuthContext) -> Callable[[], None]:
        """Take a place for a stream; the result gives it back. Raises like `streaming`."""
        return self.place_in(auth, await self.served(auth))

    def place_in(self, auth: AuthContext, tenant: Tenant) -> Callable[[], None]:
        """The same for who has just asked for `tenant`."""
        return self._streams.take(
            auth,
            per_tenant=tenant.entitlements.max_model_streams,
            per_principal=tenant.entitlements.max_model_streams_per_principal,
        )

    def place_anyway(self, auth: AuthContext) -> Callable[[], None]:
        """The same for a stream that has begun: it counts for those after it, and is never refused."""
        return self._streams.take(auth, per_tenant=_ANY, per_principal=_ANY)

    async def served(self, auth: AuthContext) -> Tenant:
        """The same as `tenant`, of a request that is counted already. Raises like it."""
        return self.served_at_hand(auth) or _active(await self._fresh.of(auth))

    def served_at_hand(self, auth: AuthContext) -> Tenant | None:
        """The same where nothing has to be waited for. Raises like it."""
        known = self._fresh.at_hand(auth)
        return None if known is None else _active(known[0])

    async def close(self) -> None:
        await self._fresh.close()

    async def _read(self, auth: AuthContext) -> Tenant | None:
        try:
            return await self._directory.get(auth, auth.tenant)
        except NotFound:
            return None


class _Streaming:
    """No generator: each of those is told to the loop, and costs as much as all the rest of this."""

    __slots__ = ("_auth", "_give_back", "_tenants")

    def __init__(self, tenants: TenantCache, auth: AuthContext) -> None:
        self._tenants = tenants
        self._auth = auth

    async def __aenter__(self) -> None:
        self._give_back = await self._tenants.place(self._auth)

    async def __aexit__(self, *_: object) -> None:
        self._give_back()


def _active(tenant: Tenant | None) -> Tenant:
    """Raises `PermissionDenied` for one that is not served any more."""
    if tenant is None or tenant.status != "active":
        raise PermissionDenied("the tenant is disabled; ask the operator of this node", code="tenant_disabled")
    return tenant
