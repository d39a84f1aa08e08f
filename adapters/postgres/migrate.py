"""Migrations: numbered SQL files, forward only, each applied once and in order.

The database keeps what was applied with its digest, and a file that changed afterwards is an error: history is not
edited, it is continued. Concurrent runners wait for each other.
"""

import hashlib
from importlib.resources import files
from typing import Final

import asyncpg
from msgspec import Struct

from adapters.postgres.bootstrap import SCHEMA
from ports.errors import Conflict, Unavailable

# Any number does, as long as all runners agree on it.
_LOCK: Final = 0x0A6E_7705

_LEDGER: Final = """
SET client_min_messages = warning;
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       text PRIMARY KEY,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON schema_migrations TO ao_app;
"""


class Migration(Struct, frozen=True, kw_only=True):
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def packaged() -> tuple[Migration, ...]:
    """The migrations of this version of the software, in order."""
    folder = files("adapters.postgres") / "migrations"
    found = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return tuple(
        Migration(name=file.name.removesuffix(".sql"), sql=file.read_text(encoding="utf-8"))
        for file in sorted(found, key=lambda file: file.name)
    )


async def migrate(dsn: str, migrations: tuple[Migration, ...] | None = None) -> list[str]:
    """Bring the database up to this version, as the role in `dsn` (the owner); the names of what was applied.

    Raises:
        Conflict: an applied migration differs from ours, or is unknown to this version.
        Unavailable: the database does not answer.
    """
    wanted = packaged() if migrations is None else migrations
    try:
        connection = await asyncpg.connect(
            dsn, timeout=10, command_timeout=300, server_settings={"search_path": SCHEMA}
        )
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
        raise Unavailable("the database does not answer; see whether it runs") from error
    try:
        # Held by the session, not by a transaction: it spans all of them and ends with the connection at the latest.
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(_LEDGER)
        rows = await connection.fetch("SELECT name, sha256 FROM schema_migrations ORDER BY name")
        due = pending({row["name"]: row["sha256"] for row in rows}, wanted)
        for migration in due:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)",
                    migration.name,
                    migration.sha256,
                )
        return [migration.name for migration in due]
    finally:
        await connection.close()


def pending(applied: dict[str, str], wanted: tuple[Migration, ...]) -> tuple[Migration, ...]:
    """What is left to apply; raises `Conflict` when the database's history is not a beginning of ours."""
    names = {migration.name for migration in wanted}
    if unknown := sorted(applied.keys() - names):
        raise Conflict(f"the database has migrations {unknown} that this version does not know; run a newer version")
    for migration in wanted:
        if applied.get(migration.name, migration.sha256) != migration.sha256:
            raise Conflict(f"migration {migration.name!r} was edited after it was applied; add a new one instead")
    due = tuple(migration for migration in wanted if migration.name not in applied)
    if due and applied and due[0].name < max(applied):
        raise Conflict(
            f"migration {due[0].name!r} comes before {max(applied)!r}, which is applied; give it a new number"
        )
    return due
