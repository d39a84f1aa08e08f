"""All that there is of a tenant, or of one principal in it, in one file: for offboarding, and for who asks for their data.

The file is a ZIP: `tables/<name>.ndjson` has a JSON object a line, a row each, and `manifest.json` says how many there are
and what each file's SHA-256 is. It is a picture of one moment, bound to the tenant by row-level security as all reading is.
Columns that hold secrets, or what was made of them, stay behind, and the manifest names them.

Of a tenant that lives or lived in homes, `tables/<home>/<name>.ndjson` has what there is in each: a picture of its own
moment, so export a tenant that is disabled when the two must agree.
"""

import asyncio
import hashlib
import zipfile
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, TypeAlias

import asyncpg
import msgspec
from msgspec import Struct

from adapters.postgres.errors import translated
from adapters.postgres.move_tables import BY_NAME, SHARED
from adapters.postgres.settled import not_configured
from adapters.postgres.subject_tables import OF_A_SUBJECT
from ports.errors import Conflict, InvalidArgument, NotFound, Unavailable
from ports.ids import PrincipalId, TenantId, is_tenant_id
from ports.privacy import check_subject

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
PAGE_ROWS: Final = 500
"""Read, written and hashed at a time."""
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
_STATEMENT_S: Final = 120.0

_TABLES: Final = """
SELECT CAST(c.relname AS text) AS name,
       array_to_json(array_agg(CAST(a.attname AS text) ORDER BY a.attnum))::text AS columns
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = CAST('agentos' AS regnamespace) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname <> 'tenant_tombstones'
GROUP BY c.relname
HAVING bool_or(a.attname = 'tenant_id')
ORDER BY c.relname
"""


class Table(Struct, frozen=True, kw_only=True):
    rows: int
    sha256: str
    """Of the file with its rows."""
    omitted: tuple[str, ...] = ()
    """Columns that stay behind."""


class Manifest(Struct, frozen=True, kw_only=True):
    format: int
    tenant_id: TenantId
    made_at: datetime
    migration: str
    """The last one of the database, which says what the rows mean."""
    tables: dict[str, Table]
    subject: PrincipalId | None = None
    """Whose rows these are; None: all of the tenant's."""

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())


class Export(Struct, frozen=True, kw_only=True):
    path: str
    sha256: str
    """Of the whole file."""
    manifest: Manifest


Open: TypeAlias = Callable[[str, Mapping[str, Any]], dict[str, Any] | None]
"""What to put in place of a row of a table; None: the row as it is. For what only others than the database can read."""
Tell: TypeAlias = Callable[[str, int], None]
"""Told of each table that is about to be written, and how many rows are written so far."""


def as_it_is(_table: str, _row: Mapping[str, Any]) -> None:
    return None


def nobody(_table: str, _rows: int) -> None:
    pass


async def export_tenant(
    dsn: str, tenant: TenantId, target: Path, homes: Mapping[str, str] = MappingProxyType({})
) -> Export:
    """Write the file, readable by its owner only; it is there whole or not at all.

    Raises:
        NotFound: there is no such tenant.
        Conflict: there is a file already.
        Unavailable: something of it is in a home that is not among `homes`, which are DSNs by name, or does not answer.
    """
    return await _export(_Job(dsn=dsn, tenant=tenant, homes=homes), target)


async def export_subject(
    dsn: str,
    tenant: TenantId,
    subject: PrincipalId,
    target: Path,
    homes: Mapping[str, str] = MappingProxyType({}),
    *,
    opened: Open = as_it_is,
    tell: Tell = nobody,
) -> Export:
    """As `export_tenant`, of one principal in all of the tenant's namespaces. Who is not known has no rows. While
    the tenant moves, and beside remains, what lies in two places is written once."""
    check_subject(subject)
    return await _export(_Job(dsn=dsn, tenant=tenant, subject=subject, homes=homes, opened=opened, tell=tell), target)


class _Job(Struct, frozen=True, kw_only=True):
    dsn: str
    tenant: TenantId
    subject: PrincipalId | None = None
    homes: Mapping[str, str] = MappingProxyType({})
    opened: Open = as_it_is
    tell: Tell = nobody


async def _export(job: _Job, target: Path) -> Export:
    tenant = job.tenant
    if not is_tenant_id(tenant):
        raise NotFound(f"there is no tenant {tenant!r}")
    if await asyncio.to_thread(target.exists):
        raise Conflict(f"there is a file {target} already; name another one")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    try:
        with translated():
            manifest = await _write(job, unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return Export(path=str(target), sha256=await asyncio.to_thread(_sha256_of, target), manifest=manifest)


def verified(path: Path) -> Manifest:
    """The manifest of an export, each row of which is there as it was written.

    Raises:
        InvalidArgument: this is no export, or not what was written.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            if packed.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
                raise InvalidArgument(f"{path}: the manifest is too long to be one of ours")
            manifest = msgspec.json.decode(packed.read(MANIFEST), type=Manifest)
            expected = {_member(name): table for name, table in manifest.tables.items()}
            if set(packed.namelist()) != {MANIFEST, *expected}:
                raise InvalidArgument(f"{path}: other files are there than the manifest names")
            for name, table in expected.items():
                with packed.open(name) as lines:
                    if _counted(lines) != (table.rows, table.sha256):
                        raise InvalidArgument(f"{path}: {name} is not what was written")
    except (OSError, KeyError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"{path} is not an export: {error}") from None
    return manifest


async def _write(job: _Job, path: Path) -> Manifest:
    tenant = job.tenant
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(_looking(job.dsn, tenant))
        if await connection.fetchval("SELECT 1 FROM tenants WHERE tenant_id = $1", tenant) is None:
            raise NotFound(f"there is no tenant {tenant!r}")
        places = {SHARED: connection}
        for home in [row["home"] for row in await connection.fetch("SELECT home FROM ao_tenant_stays()")]:
            if home not in job.homes:
                raise not_configured(tenant, home)
            places[home] = await stack.enter_async_context(_looking(job.homes[home], tenant))
        passed = {} if job.subject is None else await _copies(tenant, places)
        migration = await connection.fetchval("SELECT max(name) FROM schema_migrations")
        tables: dict[str, Table] = {}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
            for home, there in places.items():
                for name, columns in await _tables(there):
                    if job.subject is not None and (name not in OF_A_SUBJECT or name in passed.get(home, ())):
                        continue
                    member = name if home == SHARED else f"{home}/{name}"
                    # Most are empty in a home, and some were never of any use there.
                    if home == SHARED or await _has_any(there, name, tenant):
                        job.tell(member, sum(table.rows for table in tables.values()))
                        tables[member] = await _table(there, packed, job, name, columns, member=member)
            manifest = Manifest(
                format=FORMAT,
                tenant_id=tenant,
                made_at=datetime.now(UTC),
                migration=migration,
                tables=tables,
                subject=job.subject,
            )
            packed.writestr(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2))
    return manifest


async def _copies(tenant: TenantId, places: Mapping[str, asyncpg.Connection]) -> dict[str, Collection[str]]:
    """In which of these pictures which tables have no more than another one has: copies under way, and remains.

    Raises:
        Unavailable: the tenant moved between two of them.
    """
    found: dict[str, tuple[str, str]] = {}
    for home, there in places.items():
        if (row := await there.fetchrow("SELECT state, other FROM ao_move_standing()")) is not None:
            found[home] = (row["state"], row["other"])
    for state, other in found.values():
        beyond = found[other][0] if other in found else ""
        # Of two pictures one is older: only these say the same of where the tenant was.
        if other in places and (state, beyond) not in {("leaving", "arriving"), ("arriving", "leaving"), ("left", "")}:
            raise Unavailable(f"{tenant} is being moved; ask again")
    return {home: BY_NAME for home, (state, _) in found.items() if state != "leaving"}


async def _has_any(connection: asyncpg.Connection, name: str, tenant: TenantId) -> bool:
    found = await connection.fetchval(f'SELECT 1 FROM "{name}" WHERE tenant_id = $1 LIMIT 1', tenant)  # noqa: S608 - ours
    return found is not None


@asynccontextmanager
async def _looking(dsn: str, tenant: TenantId) -> AsyncIterator[asyncpg.Connection]:
    """At one moment, and at one tenant's rows."""
    connection = await asyncpg.connect(
        dsn,
        timeout=10,
        command_timeout=_STATEMENT_S,
        server_settings={"search_path": "agentos", "timezone": "UTC", "application_name": "agentos-export"},
    )
    try:
        await connection.execute(
            f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL app.tenant_id = '{tenant}'"
        )
        yield connection
        await connection.execute("COMMIT")
    finally:
        await connection.close(timeout=1)


async def _tables(connection: asyncpg.Connection) -> list[tuple[str, tuple[str, ...]]]:
    rows = await connection.fetch(_TABLES)
    return [(row["name"], msgspec.json.decode(row["columns"], type=tuple[str, ...])) for row in rows]


async def _table(
    connection: asyncpg.Connection,
    packed: zipfile.ZipFile,
    job: _Job,
    name: str,
    columns: tuple[str, ...],
    *,
    member: str = "",
) -> Table:
    omitted = tuple(column for column in columns if "secret" in column)
    shown = ", ".join(f'x."{column}"' for column in columns if column not in omitted)
    digest, rows = hashlib.sha256(), 0
    # The names are those of our own catalogue.
    whose, arguments = "", [str(job.tenant)]
    if job.subject is not None:
        whose, arguments = f" AND ({OF_A_SUBJECT[name]})", [job.tenant, job.subject]
    query = f'SELECT to_json(y)::text FROM (SELECT {shown} FROM "{name}" x WHERE x.tenant_id = $1{whose}) y'  # noqa: S608
    cursor = await connection.cursor(query, *arguments)
    with packed.open(_member(member or name), "w", force_zip64=True) as lines:
        while page := await cursor.fetch(PAGE_ROWS):
            text = b"".join(_line(job, name, row[0]) + b"\n" for row in page)
            digest.update(text)
            await asyncio.to_thread(lines.write, text)
            rows += len(page)
    return Table(rows=rows, sha256=f"sha256:{digest.hexdigest()}", omitted=omitted)


def _line(job: _Job, table: str, text: str) -> bytes:
    if job.opened is as_it_is:
        return text.encode()
    other = job.opened(table, msgspec.json.decode(text))
    return text.encode() if other is None else msgspec.json.encode(other)


def _member(table: str) -> str:
    return f"tables/{table}.ndjson"


def _counted(lines: IO[bytes]) -> tuple[int, str]:
    digest, rows = hashlib.sha256(), 0
    for line in lines:
        digest.update(line)
        rows += 1
    return rows, f"sha256:{digest.hexdigest()}"


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
