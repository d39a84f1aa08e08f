"""Administration of a node with homes: a tenant's runs are ended where it lives, and what is removed is removed in both.

The tombstone comes first, and to the shared database; then the home is emptied, then nobody is led there any more, then the
shared database is emptied. Whatever is interrupted is gone on with by the same call.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from adapters.postgres.engine import Database
from adapters.postgres.homes import Homes, Routed
from adapters.postgres.move_tables import SHARED
from adapters.postgres.settled import check_settled
from adapters.postgres.statements import load
from ports.administration import Administration, Erased, check_erasing
from ports.context import AuthContext
from ports.errors import NotFound
from ports.ids import RunId, TenantId, is_tenant_id
from ports.run_state import Run

_SQL: Final = load("administration")


class OneHome(Administration, Protocol):
    """The administration of one database."""

    async def check_quiet(self, tenant: TenantId) -> None:
        """Raise `Conflict` as `erase` does, and begin nothing."""
        ...

    async def begin_erasing(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str) -> None:
        """What the first call of `erase` does before it removes anything."""
        ...


class AdministrationOfHomes:
    """Satisfies `Administration`. `routed` are ports that refuse tenants who have left, `plain` ones that don't."""

    def __init__(
        self,
        routed: Mapping[str, Administration],
        plain: Mapping[str, OneHome],
        databases: Mapping[str, Database],
        homes: Homes,
    ) -> None:
        self._routed = Routed(routed, homes)
        self._plain = plain
        self._databases = databases
        self._homes = homes

    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        async def there(port: Any) -> Run:
            killed: Run = await port.kill(auth, tenant, run_id, reason=reason, namespace=namespace)
            return killed

        run: Run = await self._routed.at_home(tenant, there)
        return run

    async def exported(self, auth: AuthContext, tenant: TenantId) -> str | None:
        return await self._plain[SHARED].exported(auth, tenant)

    async def erase(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str, limit: int) -> Erased:
        check_erasing(auth, limit)
        if not is_tenant_id(tenant):
            raise NotFound(f"there is no tenant {tenant!r}")
        await check_settled(self._databases, tenant)
        await self._homes.ask_again()
        removed = 0
        if (home := await self._homes.of(tenant)) != SHARED:
            await self._plain[home].check_quiet(tenant)
            await self._plain[SHARED].begin_erasing(auth, tenant, export_sha256=export_sha256)
            gone = await self._plain[home].erase(auth, tenant, export_sha256=export_sha256, limit=limit)
            if not gone.done:
                return gone
            removed = gone.removed
            for name in (home, SHARED):
                async with self._databases[name].transaction(tenant) as transaction:
                    await transaction.rows(_SQL["forget_home"], {})
        rest = await self._plain[SHARED].erase(auth, tenant, export_sha256=export_sha256, limit=limit - removed)
        return Erased(removed=removed + rest.removed, done=rest.done)
