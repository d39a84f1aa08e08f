"""A real PostgreSQL for tests: one embedded server per process, one database per clone of a migrated template.

The server starts at the first use and is stopped and removed at the end of the process. It runs as in production, as root
or not, except that it does not wait for the disk, and asks who connects to hash a password once instead of 4,096 times.
"""

import asyncio
import atexit
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import asyncpg

from adapters.postgres.bootstrap import RolePasswords, restrict_database
from deploy import embedded_postgres as embedded
from tests.support.ports import free_port

TEMPLATE: Final = "agentos"
CHILDREN_FIRST: Final = (
    "gateway_configurations",
    "idempotency", "steps", "run_events", "blob_refs", "blobs", "runs", "run_slots", "run_rates", "run_backlogs", "workers",
    "queue_messages", "queue_turns", "memory_words", "memory_items", "model_replies", "request_contents", "request_records",
    "usage_events", "budget_hold_windows", "budget_holds", "budget_windows", "budgets", "agents", "principals",
    "acting_principals", "api_keys",
    "tenants", "audit_chain", "audit_heads", "audit_log", "tenant_tombstones",
    "tenant_changes", "tenant_moves", "tenant_homes", "tenant_copies", "tenant_stays", "event_days_to_thin",
)  # fmt: skip
_NEW_EPOCH: Final = "UPDATE agentos.node SET stream_epoch = substr(md5(gen_random_uuid()::text), 1, 12)"
_COUNTER: Final = itertools.count(1)
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - directories in it have random names, and are ours alone to write to
_ROOM: Final = 4 * 2**30
"""Of memory, for the servers of all processes of the suite; they use a quarter."""


@dataclass(frozen=True, slots=True)
class Server:
    layout: embedded.Layout
    port: int
    superuser_password: str
    passwords: RolePasswords

    def dsn(self, role: str, database: str = TEMPLATE) -> str:
        return f"postgresql://{role}:{self.secrets[role]}@127.0.0.1:{self.port}/{database}"

    @property
    def secrets(self) -> dict[str, str]:
        """By role."""
        return {
            "postgres": self.superuser_password,
            "ao_owner": self.passwords.owner,
            "ao_app": self.passwords.app,
            "ao_admin": self.passwords.admin,
            "ao_control": self.passwords.control,
        }


@dataclass(frozen=True, slots=True)
class Clone:
    """A database of its own, migrated and empty."""

    server: Server
    name: str

    @property
    def app(self) -> str:
        return self.server.dsn("ao_app", self.name)

    @property
    def control(self) -> str:
        """For administration: what the services' role may, and what only the platform does."""
        return self.server.dsn("ao_control", self.name)

    @property
    def owner(self) -> str:
        return self.server.dsn("ao_owner", self.name)

    @property
    def admin(self) -> str:
        """Bypasses row-level security: for back doors."""
        return self.server.dsn("ao_admin", self.name)

    @property
    def superuser(self) -> str:
        return self.server.dsn("postgres", self.name)


_SPARE: Final[list[Clone]] = []


@cache
def server() -> Server:
    """This process' server, started and migrated at the first call."""
    home = Path(tempfile.mkdtemp(prefix="agentos-test-"))
    layout = embedded.Layout(home)
    memory = _lay_in_memory(layout)
    password = secrets.token_urlsafe(16)
    embedded.prepare(layout, superuser_password=password)
    port = free_port()
    fast = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
    process = embedded.start(layout, port, extra=fast)

    def end() -> None:
        embedded.stop(layout)
        process.wait(10)
        if memory is not None:
            layout.state.unlink()
            shutil.rmtree(memory)
        embedded.destroy(layout)

    atexit.register(end)
    embedded.wait_ready(port)
    passwords = RolePasswords(
        owner=secrets.token_hex(8), app=secrets.token_hex(8), admin=secrets.token_hex(8), control=secrets.token_hex(8)
    )
    made = Server(layout=layout, port=port, superuser_password=password, passwords=passwords)
    embedded.set_up_database(made.dsn("postgres", "postgres"), made.dsn("ao_owner"), passwords)
    asyncio.run(_hash_once(made))
    return made


def _lay_in_memory(layout: embedded.Layout) -> Path | None:
    """Its files, where this machine has room for them; None where it has not.

    A clone is some hundred files, and a file system that has just removed as many may take long to make them.
    """
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _ROOM:
        return None
    memory = Path(tempfile.mkdtemp(prefix="agentos-test-", dir=_MEMORY))
    memory.chmod(0o755)  # the server's user passes through
    layout.state.parent.mkdir(parents=True, exist_ok=True)
    if layout.state.exists():
        layout.state.rmdir()
    layout.state.symlink_to(memory)
    return memory


async def _hash_once(server: Server) -> None:
    """It is half of what a connection costs, and these passwords are random."""
    again = (f"ALTER ROLE {role} PASSWORD '{secret}'" for role, secret in server.secrets.items())
    await execute(server.dsn("postgres", "postgres"), f"SET scram_iterations = 1; {'; '.join(again)}")


async def clone() -> Clone:
    """A new database, as a fresh node would have it: with its own stream epoch."""
    # Starting the server drives an event loop of its own, so not on this thread.
    origin = await asyncio.to_thread(server)
    made = Clone(server=origin, name=f"clone_{os.getpid()}_{next(_COUNTER)}")
    admin = await asyncpg.connect(origin.dsn("postgres", "postgres"))
    try:
        # Copied past the write-ahead log, which is dearer and for those who fear a crash.
        await admin.execute(f'CREATE DATABASE "{made.name}" TEMPLATE {TEMPLATE} STRATEGY FILE_COPY OWNER ao_owner')
        await restrict_database(admin, made.name)
    finally:
        await admin.close()
    await execute(made.superuser, _NEW_EPOCH)
    return made


async def drop(database: Clone) -> None:
    await execute(database.server.dsn("postgres", "postgres"), f'DROP DATABASE "{database.name}" WITH (FORCE)')


async def borrow() -> Clone:
    """A database like a new clone, thirty times as fast: one that somebody gave back, emptied."""
    return _SPARE.pop() if _SPARE else await clone()


async def give_back(database: Clone) -> None:
    """Empty `database`, whose schema is as it was, for the next `borrow`."""
    emptying = "; ".join(f"DELETE FROM {table}" for table in CHILDREN_FIRST)
    await execute(database.superuser, f"SET search_path = agentos; {emptying}; {_NEW_EPOCH}; {_now(timedelta(0))}")
    _SPARE.append(database)


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(dsn: str, query: str, *parameters: Any) -> list[asyncpg.Record]:
    async with connected(dsn) as connection:
        rows: list[asyncpg.Record] = await connection.fetch(query, *parameters)
        return rows


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """For many queries: to connect is dearer than to ask."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "agentos"})
    try:
        yield connection
    finally:
        await connection.close()


async def shift_time(database: Clone, by: timedelta) -> None:
    """Make the database take now for `by` later than it is. Only the owner of the schema can."""
    await execute(database.owner, _now(by))


def _now(shift: timedelta) -> str:
    return (
        "CREATE OR REPLACE FUNCTION agentos.ao_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE "
        f"RETURN clock_timestamp() + interval '{shift.total_seconds():.6f} seconds'"
    )


@asynccontextmanager
async def cloned() -> AsyncIterator[Clone]:
    """A clone that is dropped at the end."""
    async with AsyncExitStack() as stack:
        made = await clone()
        stack.push_async_callback(drop, made)
        yield made


async def left_of(database: Clone, tenant: str) -> set[str]:
    """Tables with rows of it, beside the audit, which is for good; those of moves too."""
    found: set[str] = set()
    async with connected(database.superuser) as connection:
        columns = await connection.fetch(
            "SELECT c.relname AS name, a.attname AS tenant FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
            "AND a.attname IN ('tenant_id', 'tenant') WHERE c.relnamespace = 'agentos'::regnamespace AND c.relkind = 'r'"
        )
        for column in columns:
            query = f"SELECT count(*) FROM {column['name']} WHERE {column['tenant']} = $1"
            if await connection.fetchval(query, tenant) and not column["name"].startswith("audit"):
                found.add(column["name"])
    return found
