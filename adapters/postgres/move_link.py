"""Between the two databases of a move: rows are read in one and written in the other, by key, as often as one likes.

Both connections are the owner's, acting as the definer role (`bootstrap`), which sees every tenant's rows: so each
statement here names the tenant. Rows go as the server's own binary copy, so that they arrive bit by bit as they were.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import asyncpg
from msgspec import Struct

from adapters.postgres.bootstrap import DEFINER, SCHEMA
from adapters.postgres.move_tables import TABLES, Key, Moved, children_of, quoted, recordset, same
from ports.errors import Conflict, Unavailable
from ports.ids import TenantId

CONNECT_S: Final = 10.0
STATEMENT_S: Final = 600.0
"""For one statement outside the freeze: a checksum of a table, of which the largest tenant has the most."""
_SETTINGS: Final = {
    "application_name": "agentos-move",
    "search_path": SCHEMA,
    # Checksums are of texts: they must be written alike.
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "jit": "off",
    # Keys of tenants stand in statements as literals.
    "standard_conforming_strings": "on",
}


class Sum(Struct, frozen=True):
    """Of a tenant's rows in one table: how many, and the sum of their hashes, which knows no order."""

    rows: int
    checksum: str

    def plus(self, other: "Sum") -> "Sum":
        return Sum(self.rows + other.rows, str(int(self.checksum) + int(other.checksum)))


class End:
    """One of the two databases."""

    def __init__(self, name: str, connection: asyncpg.Connection) -> None:
        self.name = name
        self.connection = connection
        self._columns: dict[str, str] = {}

    async def make_stages(self) -> None:
        """Tables of this session that `write` uses. As the owner: the other role may make none."""
        for table in TABLES:
            await self.connection.execute(
                f"RESET ROLE; CREATE TEMP TABLE IF NOT EXISTS moving_{table.name} (LIKE {SCHEMA}.{table.name}); "
                f"GRANT ALL ON moving_{table.name} TO {DEFINER}; SET ROLE {DEFINER}"
            )

    async def columns(self, table: Moved) -> str:
        """All of them, in one order everywhere."""
        if table.name not in self._columns:
            rows = await self.connection.fetch(
                "SELECT quote_ident(attname) AS name FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 "
                "AND NOT attisdropped ORDER BY attname",
                f"{SCHEMA}.{table.name}",
            )
            self._columns[table.name] = ", ".join(row["name"] for row in rows)
        return self._columns[table.name]

    async def read(self, table: Moved, condition: str, *, source: str = "") -> bytes:
        """The rows `t` of the table that satisfy `condition`, as a binary copy."""
        parts: list[bytes] = []

        # Not a file: the driver would write to it in a thread, and is stuck when that is cancelled.
        async def keep(part: bytes) -> None:
            parts.append(bytes(part))

        listed = ", ".join(f"t.{column}" for column in (await self.columns(table)).split(", "))
        query = f"SELECT {listed} FROM {table.name} t{source} WHERE {condition}"  # noqa: S608 - quoted by `quoted`
        await self.connection.copy_from_query(query, output=keep, format="binary")
        return b"".join(parts)

    async def read_keys(self, tenant: TenantId, table: Moved, keys: Sequence[Key]) -> bytes:
        """Those of the rows that there are."""
        condition = f"t.tenant_id = {quoted(tenant)} AND {same(table.columns, 't', 'k')}"
        return await self.read(table, condition, source=f", {recordset(table.key, keys)}")

    async def write(self, table: Moved, copied: bytes) -> None:
        """Rows become as they were when they were read."""
        stage, columns = f"moving_{table.name}", await self.columns(table)
        await self.connection.execute(f"TRUNCATE {stage}")
        await self.connection.copy_to_table(
            stage, schema_name="pg_temp", columns=_names(columns), source=_once(copied), format="binary"
        )
        unmet = " AND ".join(
            f"EXISTS (SELECT FROM {parent.table} p WHERE p.tenant_id = s.tenant_id AND "
            + " AND ".join(f"p.{theirs} = s.{ours}" for theirs, ours in parent.link)
            + ")"
            for parent in table.parents
        )
        sets = ", ".join(f"{column} = excluded.{column}" for column in columns.split(", "))
        # A child without its parent here was made after its parents were copied, so it is noted and comes again.
        await self.connection.execute(
            f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {stage} s WHERE {unmet or 'true'} "  # noqa: S608
            f"ON CONFLICT (tenant_id, {', '.join(table.columns)}) DO UPDATE SET {sets}"
        )

    async def remove(self, tenant: TenantId, table: Moved, keys: Sequence[Key]) -> None:
        """Those of `keys` that `write` has not just brought, and what hangs on them."""
        stage = f"moving_{table.name}"
        kept = f"SELECT FROM {stage} s WHERE {same(table.columns, 's', 'k')}"
        gone = f"{recordset(table.key, keys)} WHERE NOT EXISTS ({kept})"
        for child, parent in children_of(table.name):
            link = " AND ".join(f"c.{ours} = g.{theirs}" for theirs, ours in parent.link)
            await self.connection.execute(
                f"DELETE FROM {child.name} c USING (SELECT k.* FROM {gone}) g "  # noqa: S608 - quoted by `recordset`
                f"WHERE c.tenant_id = {quoted(tenant)} AND {link}"
            )
        await self.connection.execute(
            f"DELETE FROM {table.name} t USING (SELECT k.* FROM {gone}) g "  # noqa: S608 - quoted by `recordset`
            f"WHERE t.tenant_id = {quoted(tenant)} AND {same(table.columns, 't', 'g')}"
        )

    async def reach(self, tenant: TenantId, table: Moved, after: Sequence[str] | None) -> list[str] | None:
        """The key of the last row of the next stretch beyond `after`; None where there is nothing."""
        keys = ", ".join(table.columns)
        beyond = f" AND ({keys}) > ({typed(table, after)})" if after is not None else ""
        stretch = (
            f"SELECT {keys} FROM {table.name} WHERE tenant_id = {quoted(tenant)}{beyond} "  # noqa: S608 - quoted
            f"ORDER BY {keys} LIMIT {table.rows}"
        )
        order = ", ".join(f"{column} DESC" for column in table.columns)
        texts = ", ".join(f"{column}::text" for column in table.columns)
        row = await self.connection.fetchrow(f"SELECT {texts} FROM ({stretch}) s ORDER BY {order} LIMIT 1")  # noqa: S608
        return None if row is None else list(row)

    async def sums(self, tenant: TenantId, since: datetime | None = None) -> dict[str, Sum]:
        """Of every table; with `since`, without the rows that had settled by then."""
        return await self._sums(
            tenant,
            {
                table: f"t.{table.settles} >= {quoted(str(since))}" if since and table.settles else "true"
                for table in TABLES
            },
        )

    async def settled(self, tenant: TenantId, until: datetime) -> dict[str, Sum]:
        """Of rows that were written before `until` and are never changed."""
        which = {table: f"t.{table.settles} < {quoted(str(until))}" for table in TABLES if table.settles}
        return await self._sums(tenant, which)

    async def _sums(self, tenant: TenantId, which: Mapping[Moved, str]) -> dict[str, Sum]:
        """In one statement: there is somebody who waits for it."""
        parts: list[str] = []
        for table, condition in which.items():
            listed = ", ".join(f"t.{column}" for column in (await self.columns(table)).split(", "))
            parts.append(
                f"SELECT {quoted(table.name)} AS name, count(*) AS rows, "  # noqa: S608 - quoted
                f"coalesce(sum(hashtextextended(CAST(ROW({listed}) AS text), 0)::numeric), 0)::text AS checksum "
                f"FROM {table.name} t WHERE t.tenant_id = {quoted(tenant)} AND {condition}"
            )
        rows = await self.connection.fetch(" UNION ALL ".join(parts))
        return {row["name"]: Sum(row["rows"], row["checksum"]) for row in rows}

    async def clear(self, tenant: TenantId, table: Moved) -> int:
        """Remove one stretch of the tenant's rows; how many it were."""
        keys = ", ".join(table.columns)
        answer: str = await self.connection.execute(
            f"DELETE FROM {table.name} t USING (SELECT {keys} FROM {table.name} WHERE tenant_id = {quoted(tenant)} "  # noqa: S608
            f"LIMIT {table.rows}) g WHERE t.tenant_id = {quoted(tenant)} AND {same(table.columns, 't', 'g')}"
        )
        return int(answer.rpartition(" ")[2])


async def _once(copied: bytes) -> AsyncIterator[bytes]:
    yield copied


def typed(table: Moved, key: Sequence[str]) -> str:
    return ", ".join(f"{quoted(value)}::{kind}" for value, (_, kind) in zip(key, table.key, strict=True))


def _names(columns: str) -> list[str]:
    return [name.strip('"') for name in columns.split(", ")]


@asynccontextmanager
async def open_end(name: str, dsn: str) -> AsyncIterator[End]:
    """Raises `Unavailable` when the database does not answer, `Conflict` when it is not ready for tenants that move."""
    try:
        connection = await asyncpg.connect(
            dsn, timeout=CONNECT_S, command_timeout=STATEMENT_S, server_settings=_SETTINGS, statement_cache_size=0
        )
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise Unavailable(
            f"the home {name!r} does not answer; see whether it runs and AGENTOS_HOMES is right"
        ) from error
    try:
        if await connection.fetchval("SELECT to_regclass('agentos.tenant_moves')") is None:
            raise Conflict(f"the home {name!r} lacks migrations; apply them with `agentos up`")
        await connection.execute(f"SET ROLE {DEFINER}")
        yield End(name, connection)
    finally:
        try:
            await connection.close(timeout=1)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
