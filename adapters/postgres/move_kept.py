"""What is held, for how long what is kept, and erasings: what a home must know of a tenant before it removes anything."""

from typing import Final

from adapters.postgres.move_job import Move
from adapters.postgres.move_link import End
from adapters.postgres.move_tables import SHARED, quoted
from adapters.postgres.statements import load

_KEPT: Final = load("privacy")["kept"]


async def bring_kept(move: Move, there: End) -> None:
    """Copies what the shared database says; in a transaction of the caller's there, and under the lock of what is held in
    one of the directory's."""
    if there.name == SHARED:
        return
    kept = await move.directory.connection.fetchrow(_KEPT.sql, *_KEPT.arguments({"tenant": move.tenant}))
    assert kept is not None, "a row of lists"
    await there.connection.execute(f"SET LOCAL app.tenant_id = {quoted(move.tenant)}")
    await there.connection.execute("SELECT ao_copy_kept($1::json, $2::json)", kept["holds"], kept["rules"])


async def look_again(move: Move, there: End) -> None:
    """What arrives may be of somebody whose erasing is not done: there it begins anew."""
    rows = await move.directory.connection.fetch(
        "SELECT name FROM subject_tombstones WHERE tenant_id = $1 AND status = 'erasing'", move.tenant
    )
    await there.connection.execute(
        "UPDATE subject_tombstones SET status = 'erasing', erased_at = NULL, stage = 'runs', after = NULL "
        "WHERE tenant_id = $1 AND name = ANY ($2::text[])",
        move.tenant,
        [row["name"] for row in rows],
    )


async def forget_kept(move: Move, there: End) -> None:
    """Of a tenant that never came to live there."""
    for name in ("legal_holds", "retention_rules", "subject_tombstones"):
        await there.connection.execute(f"DELETE FROM {name} WHERE tenant_id = $1", move.tenant)  # noqa: S608 - ours
