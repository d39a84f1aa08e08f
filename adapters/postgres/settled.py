"""Where a tenant has ever lived, and whether anything of it is under way between two databases."""

from collections.abc import Mapping
from typing import Final

from adapters.postgres.engine import Database, Transaction
from adapters.postgres.move_tables import SHARED
from adapters.postgres.statements import load
from ports.errors import Conflict, Unavailable
from ports.ids import TenantId

_SQL: Final = load("administration")


async def stays_of(databases: Mapping[str, Database], tenant: TenantId) -> tuple[str, ...]:
    """The homes beside the shared database. Raises `Unavailable` for one that is not configured."""
    async with databases[SHARED].transaction(tenant) as transaction:
        return await stays_in(transaction, databases, tenant)


async def stays_in(transaction: Transaction, databases: Mapping[str, Database], tenant: TenantId) -> tuple[str, ...]:
    """As `stays_of`, in a transaction of the shared database that is bound to the tenant."""
    stays = tuple(str(row["home"]) for row in await transaction.rows(_SQL["stays"], {}))
    if unknown := [name for name in stays if name not in databases]:
        raise not_configured(tenant, unknown[0])
    return stays


def not_configured(tenant: TenantId, home: str) -> Unavailable:
    return Unavailable(
        f"{tenant} lives or lived in the home {home!r}, which is not configured here; add it to AGENTOS_HOMES and run "
        "`agentos redeploy`, so that nothing of it is passed by"
    )


async def check_settled(databases: Mapping[str, Database], tenant: TenantId) -> tuple[str, ...]:
    """Where it ever lived, once nothing of it is under way between two databases, or left behind in one."""
    stays = await stays_of(databases, tenant)
    for name in (SHARED, *stays):
        async with databases[name].transaction(tenant) as transaction:
            standing = await transaction.row(_SQL["move_standing"], {})
        if standing is None:
            continue
        if standing["state"] == "left":
            raise Conflict(
                f"there are remains of {tenant} in {name!r}; remove them first with "
                f"`agentos tenant move {tenant} --clear --grace-hours 0`"
            )
        raise Conflict(f"{tenant} is being moved; let that come to its end, or abort it")
    return stays
