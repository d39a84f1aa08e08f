"""What a tenant may use, at most a few seconds old."""

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import NotFound, PermissionDenied
from ports.tenant import Tenant, TenantDirectory
from stack_b.fresh import Fresh


class TenantCache:
    def __init__(self, directory: TenantDirectory, clock: Clock) -> None:
        self._directory = directory
        self._fresh = Fresh(self._read, clock)

    async def tenant(self, auth: AuthContext) -> Tenant:
        """The caller's tenant.

        Raises:
            PermissionDenied: `tenant_disabled`; a tenant that was removed is no different.
            Unavailable: the directory can't be asked (fail closed).
        """
        tenant = await self._fresh.of(auth)
        if tenant is None or tenant.status != "active":
            raise PermissionDenied("the tenant is disabled; ask the operator of this node", code="tenant_disabled")
        return tenant

    async def close(self) -> None:
        await self._fresh.close()

    async def _read(self, auth: AuthContext) -> Tenant | None:
        try:
            return await self._directory.get(auth, auth.tenant)
        except NotFound:
            return None
