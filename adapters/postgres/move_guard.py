"""The triggers of a tenant that moves: made and dropped one table at a time, without keeping anybody waiting for long."""

import asyncio
import hashlib
import random
from typing import Final

import asyncpg

from adapters.postgres.bootstrap import DEFINER, SCHEMA
from adapters.postgres.move_link import End
from adapters.postgres.move_tables import TABLES, Moved, noting, quoted
from ports.errors import Unavailable
from ports.ids import TenantId

_LOCK_TIMEOUT_MS: Final = 200
"""How long a table's lock is waited for, and with it how long others may wait behind."""
_WITHIN_S: Final = 60.0
_AGAIN_S: Final = (0.05, 0.3)


async def guard(end: End, tenant: TenantId) -> None:
    """From the return on, each write of the tenant's rows is noted, or refused once the tenant has left."""
    for table in TABLES:
        make = [
            f"CREATE OR REPLACE TRIGGER {name} BEFORE {when} ON {table.name} FOR EACH ROW "
            f"WHEN ({row}.tenant_id = {quoted(tenant)}) "
            f"EXECUTE FUNCTION ao_move_guard({quoted(tenant)}, {quoted(noting(table))}, {quoted(table.name)})"
            for name, when, row in _triggers(tenant)
        ]
        if len(await _there(end, tenant, table)) < len(make):
            await _patiently(end, table, make)


async def unguard(end: End, tenant: TenantId) -> None:
    for table in TABLES:
        if there := await _there(end, tenant, table):
            await _patiently(end, table, [f"DROP TRIGGER IF EXISTS {name} ON {table.name}" for name in there])


def _triggers(tenant: TenantId) -> tuple[tuple[str, str, str], ...]:
    # A tenant's id may be longer than a name.
    name = f"ao_move_{hashlib.sha256(tenant.encode()).hexdigest()[:16]}"
    return ((f"{name}_w", "INSERT OR UPDATE", "new"), (f"{name}_d", "DELETE", "old"))


async def _there(end: End, tenant: TenantId, table: Moved) -> list[str]:
    rows = await end.connection.fetch(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgname = ANY ($2::text[])",
        f"{SCHEMA}.{table.name}",
        [name for name, _, _ in _triggers(tenant)],
    )
    return [row["tgname"] for row in rows]


async def _patiently(end: End, table: Moved, statements: list[str]) -> None:
    """As the owner, in one transaction that gives up a lock which it does not get at once, and begins again."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _WITHIN_S
    while True:
        try:
            async with end.connection.transaction():
                await end.connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}; RESET ROLE")
                for statement in statements:
                    await end.connection.execute(statement)
                await end.connection.execute(f"SET ROLE {DEFINER}")
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if loop.time() > give_up:
                raise Unavailable(
                    f"the table {table.name!r} of {end.name!r} was not to be had within {_WITHIN_S:.0f} s; see who holds "
                    "it in pg_stat_activity, and move again"
                ) from error
        else:
            return
        await asyncio.sleep(random.uniform(*_AGAIN_S))  # noqa: S311 - spreads load, guards nothing
