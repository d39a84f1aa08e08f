"""The copying of a tenant's rows while it works, and of what it changed meanwhile. For `adapters.postgres.move`."""

from collections.abc import Mapping
from typing import Final

import msgspec

from adapters.postgres.move_job import Move, Step
from adapters.postgres.move_link import End, typed
from adapters.postgres.move_tables import BY_NAME, COUNTERS, TABLES, Moved, changed_keys, quoted
from ports.ids import TenantId

_NOTED: Final = 500
"""Changes that are copied at a time."""
_LITTLE: Final = 200
"""So few changes are left to the end."""


async def copy(move: Move, here: End, there: End) -> None:
    found = await here.connection.fetchval("SELECT reached FROM tenant_moves WHERE tenant = $1", move.tenant)
    reached: dict[str, list[str] | None] = msgspec.json.decode(found)
    for table in TABLES:
        if table.name in COUNTERS or (table.name in reached and reached[table.name] is None):
            continue
        after = reached.get(table.name)
        while (upto := await here.reach(move.tenant, table, after)) is not None:
            copied = await here.read(table, _between(move.tenant, table, after, upto))
            async with there.connection.transaction():
                await there.write(table, copied)
            after = reached[table.name] = upto
            await remember(move, here, reached)
            await move.tell(Step(point="copied", table=table.name, rows=table.rows))
        reached[table.name] = None
        await remember(move, here, reached)


def _between(tenant: TenantId, table: Moved, after: list[str] | None, upto: list[str]) -> str:
    keys = ", ".join(f"t.{column}" for column in table.columns)
    low = f" AND ({keys}) > ({typed(table, after)})" if after is not None else ""
    return f"t.tenant_id = {quoted(tenant)} AND ({keys}) <= ({typed(table, upto)}){low}"


async def remember(move: Move, here: End, reached: Mapping[str, list[str] | None]) -> None:
    await here.connection.execute(
        "UPDATE tenant_moves SET reached = $2::json WHERE tenant = $1",
        move.tenant,
        msgspec.json.encode(reached).decode(),
    )


async def catch_up(move: Move, here: End, there: End) -> None:
    """Until little is left. That the tenant writes faster than this reads would show, and stops nobody."""
    while True:
        async with here.connection.transaction(), there.connection.transaction():
            noted = await bring(move, here, there)
        await move.tell(Step(point="caught_up", rows=noted))
        if noted < _LITTLE:
            return


async def bring(move: Move, here: End, there: End) -> int:
    """Some of what was noted, in transactions of the caller's: theirs must be committed before ours. How many changes."""
    rows = await here.connection.fetch(
        "DELETE FROM tenant_changes c USING (SELECT n FROM tenant_changes WHERE tenant = $1 ORDER BY n LIMIT $2) g "
        "WHERE c.tenant = $1 AND c.n = g.n RETURNING c.name, c.key::text AS key",
        move.tenant,
        _NOTED,
    )
    changed = changed_keys((row["name"], msgspec.json.decode(row["key"])) for row in rows)
    for name, keys in changed.items():
        table = BY_NAME[name]
        await there.write(table, await here.read_keys(move.tenant, table, keys))
    for name, keys in reversed(changed.items()):
        await there.remove(move.tenant, BY_NAME[name], keys)
    return len(rows)
