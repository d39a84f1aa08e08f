"""Migrations: numbered SQL files, forward only, each applied once and in order.

The database keeps what was applied with its digest, and a file that changed afterwards is an error: history is not
edited, it is continued. Concurrent runners wait for each other.

Services go on meanwhile. A file is one transaction, which gives up a lock that it does not get at once and begins again:
whoever asks for a table's after it would wait behind it. What takes long is in a file of its own that begins with
`-- outside a transaction`: statements that leave the table open, one after the other, such as `CREATE INDEX CONCURRENTLY`.
When one of them fails, the next runner builds anew what it left half made. See ADR 0018.
"""

import asyncio
import hashlib
import random
import re
from importlib.resources import files
from typing import Final

import asyncpg
from msgspec import Struct

from adapters.postgres.bootstrap import SCHEMA
from ports.errors import Conflict, Unavailable

# Any number does, as long as all runners agree on it.
_LOCK: Final = 0x0A6E_7705
_OUTSIDE: Final = "-- outside a transaction\n"
_LOCK_TIMEOUT_MS: Final = 300
"""How long a lock is waited for, and with it how long everybody who comes after may wait."""
_LOCKS_WITHIN_S: Final = 60.0
"""How long a migration tries to get its locks."""
_AGAIN_S: Final = (0.1, 0.5)
_LOOK_S: Final = 0.1
_STATEMENT_S: Final = 300.0
_OUTSIDE_S: Final = 6 * 3_600.0
"""For one statement outside a transaction: an index of a large table."""

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

    @property
    def outside(self) -> tuple[str, ...]:
        """Its statements, where they run outside a transaction; none where it is one."""
        if not self.sql.startswith(_OUTSIDE):
            return ()
        return tuple(part.strip() for part in self.sql.removeprefix(_OUTSIDE).split(";\n") if part.strip())


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
        Unavailable: the database does not answer, or somebody holds a lock that a migration needs for too long.
    """
    wanted = packaged() if migrations is None else migrations
    try:
        connection = await asyncpg.connect(
            dsn, timeout=10, command_timeout=_STATEMENT_S, server_settings={"search_path": SCHEMA}
        )
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
        raise Unavailable("the database does not answer; see whether it runs") from error
    try:
        await _alone(connection)
        await connection.execute(_LEDGER)
        rows = await connection.fetch("SELECT name, sha256 FROM schema_migrations ORDER BY name")
        due = pending({row["name"]: row["sha256"] for row in rows}, wanted)
        for migration in due:
            if migration.outside:
                for statement in migration.outside:
                    await _make_outside(connection, statement)
                await _remember(connection, migration)
            else:
                await _apply(connection, migration)
        return [migration.name for migration in due]
    finally:
        await connection.close()


async def _alone(connection: asyncpg.Connection) -> None:
    """Wait for other runners. Held by the session: it spans all transactions and ends with the connection at the latest."""
    async with asyncio.timeout(_STATEMENT_S):
        # Asked again and again: who waits inside a statement has a snapshot, which an index that is built concurrently
        # waits for.
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):  # noqa: ASYNC110 - see below
            await asyncio.sleep(_LOOK_S)  # another runner's lock sets no event of ours


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    """In one transaction. A lock that isn't to be had at once is asked for again, so that others get theirs in between."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _LOCKS_WITHIN_S
    while True:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
                await connection.execute(migration.sql)
                await _remember(connection, migration)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if loop.time() > give_up:
                raise Unavailable(
                    f"migration {migration.name!r} did not get its locks within {_LOCKS_WITHIN_S:.0f} s; see who holds "
                    "them in pg_stat_activity, and run it again"
                ) from error
        else:
            return
        await asyncio.sleep(random.uniform(*_AGAIN_S))  # noqa: S311 - spreads load, guards nothing


async def _make_outside(connection: asyncpg.Connection, statement: str) -> None:
    """What an earlier runner has made is left as it is; an index that it left half made is built anew."""
    if (built := re.search(r"^CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+)", statement, re.MULTILINE)) is not None:
        name = built[1]
        valid = await connection.fetchval(
            "SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass(quote_ident($1))", name
        )
        if valid:
            return
        if valid is not None:
            await connection.execute(f"DROP INDEX CONCURRENTLY {name}", timeout=_OUTSIDE_S)
    await connection.execute(statement, timeout=_OUTSIDE_S)


async def _remember(connection: asyncpg.Connection, migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)", migration.name, migration.sha256
    )


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
