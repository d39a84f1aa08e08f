"""The directory of a node with homes: it is the shared database's, and a tenant's home has a copy of the tenant's line.

The limits of runs are read where runs are made and claimed. A change is written to the directory first, and then to the
copy; when the home does not answer the caller is told so, and says it again.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from typing import Any, Final, cast

from msgspec.structs import replace

from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.homes import Homes, Open
from adapters.postgres.move_tables import SHARED
from adapters.postgres.rows import packed
from adapters.postgres.statements import statement
from ports.adapter import Given
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.tenant import Tenant, TenantDirectory

_CHANGES: Final = frozenset({"set_status", "set_entitlements"})
_COPY: Final = statement("SELECT ao_copy_tenant(:status, CAST(:entitlements AS json))")


class CopiedTenants:
    """Stands in for the directory; of what it changes, a copy goes to the tenant's home."""

    def __init__(self, directory: TenantDirectory, homes: Homes, databases: Mapping[str, Database]) -> None:
        self._directory = directory
        self._homes = homes
        self._databases = databases

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._directory, name)
        return self._copied(value) if name in _CHANGES else value

    def _copied(self, change: Any) -> Any:
        @wraps(change)
        async def copied(auth: AuthContext, *args: Any, **kwargs: Any) -> Tenant:
            tenant: Tenant = await change(auth, *args, **kwargs)
            await self._copy(tenant)
            return tenant

        return copied

    async def _copy(self, tenant: Tenant) -> None:
        await self._homes.ask_again()
        if (home := await self._homes.of(tenant.id)) == SHARED:
            return
        if (database := self._databases.get(home)) is None:
            raise Unavailable(f"{tenant.id} is changed in the directory, but its home {home!r} is not configured here")
        row = {"status": tenant.status, "entitlements": packed(tenant.entitlements)}
        async with database.transaction(tenant.id) as transaction:
            await transaction.rows(_COPY, row)


def copied_to_homes(open_one: Open[TenantDirectory]) -> Open[TenantDirectory]:
    @asynccontextmanager
    async def opened(config: PostgresConfig, given: Given) -> AsyncIterator[TenantDirectory]:
        shared = replace(config, homes=())
        async with open_one(shared, given) as directory:
            if not config.homes:
                yield directory
                return
            async with AsyncExitStack() as stack:
                homes = Homes(await stack.enter_async_context(open_database(shared, apart="homes")))
                databases = {
                    name: await stack.enter_async_context(open_database(replace(shared, dsn=dsn)))
                    for name, dsn in config.homes
                }
                yield cast("TenantDirectory", CopiedTenants(directory, homes, databases))

    return opened
