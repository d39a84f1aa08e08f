"""What a tenant may use, at most a few seconds old."""

from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Final

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import NotFound, PermissionDenied
from ports.ids import TenantId
from ports.tenant import Tenant, TenantDirectory
from stack_b.shared_reads import SharedReads

FRESH: Final = timedelta(seconds=4)
"""Changes take effect within 5 s everywhere; the rest of that is for the reading."""
MAX_TENANTS: Final = 10_000


class TenantCache:
    def __init__(self, directory: TenantDirectory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._known: OrderedDict[TenantId, tuple[Tenant, datetime]] = OrderedDict()
        self._reads: SharedReads[TenantId, Tenant] = SharedReads()

    async def tenant(self, auth: AuthContext) -> Tenant:
        """The caller's tenant.

        Raises:
            PermissionDenied: `tenant_disabled`; a tenant that was removed is no different.
            Unavailable: the directory can't be asked (fail closed).
        """
        now = self._clock.now()
        known = self._known.get(auth.tenant)
        if known is None or now - known[1] >= FRESH:
            known = (await self._reads.of(auth.tenant, lambda: self._read(auth)), now)
            self._known[auth.tenant] = known
            self._known.move_to_end(auth.tenant)
            if len(self._known) > MAX_TENANTS:
                self._known.popitem(last=False)
        if known[0].status != "active":
            raise _disabled()
        return known[0]

    async def _read(self, auth: AuthContext) -> Tenant:
        try:
            return await self._directory.get(auth, auth.tenant)
        except NotFound:
            raise _disabled() from None


def _disabled() -> PermissionDenied:
    return PermissionDenied("the tenant is disabled; ask the operator of this node", code="tenant_disabled")
