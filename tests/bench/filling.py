"""Databases that have seen a lot: copies of what real runs left there, made by SQL."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import asyncpg
from msgspec.structs import replace

from adapters.postgres.bootstrap import restrict_database
from ports.context import AuthContext
from ports.ids import TenantId
from tests.bench.engine_load import CALLER
from tests.support.postgres import TEMPLATE, Server

_OF_A_TENANT: Final = ("tenants", "agents", "queue_turns", "run_slots", "run_rates", "run_backlogs")
"""What a tenant has that has had runs, but for the runs."""
_OF_A_RUN: Final = {
    "runs": {
        "id": "copy.id", "created_at": "copy.at", "queued_at": "copy.at", "started_at": "copy.at", "finished_at": "copy.at",
    },
    "steps": {"run_id": "copy.id"},
    "run_events": {"run_id": "copy.id", "event_id": "uuidv7()"},
    "idempotency": {"run_id": "copy.id", "key": "old.key || '-' || copy.n", "created_at": "copy.at"},
    "audit_log": {"id": "uuidv7()", "subject": "'run_' || replace(copy.id::text, '-', '')"},
}  # fmt: skip
_SECONDS: Final = 3_600.0


@dataclass(frozen=True)
class OtherDatabase(Server):
    """Another database of the same server, in the place of the usual one."""

    name: str

    def dsn(self, role: str, database: str = TEMPLATE) -> str:
        return super().dsn(role, self.name if database == TEMPLATE else database)


async def create(server: Server, name: str, *, like: str = TEMPLATE) -> Server:
    """A database beside that of `server` with what is in the one that it is `like`: migrated, and empty unless told."""
    admin = await asyncpg.connect(server.dsn("postgres", "postgres"))
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {like} OWNER ao_owner")
        await restrict_database(admin, name)
    finally:
        await admin.close()
    return OtherDatabase(
        layout=server.layout,
        port=server.port,
        superuser_password=server.superuser_password,
        passwords=server.passwords,
        name=name,
    )


def callers(count: int) -> tuple[AuthContext, ...]:
    """`CALLER`, and copies of it in other tenants."""
    return CALLER, *(replace(CALLER, tenant=TenantId(f"{CALLER.tenant}_{number}")) for number in range(1, count))


async def add_tenants(server: Server, count: int) -> float:
    """Tenants like `CALLER`'s, which has had runs; the seconds it took."""
    # Asleep, as who has nothing waiting is.
    tenant = {"tenant_id": "old.tenant_id || '_' || copy.n", "next_at": "'infinity'"}
    source = (
        f"(SELECT n FROM generate_series(1, {count - 1}) AS n) AS copy, %s old WHERE old.tenant_id = '{CALLER.tenant}'"
    )
    return await _filled(server, dict.fromkeys(_OF_A_TENANT, tenant), source)


async def add_finished(server: Server, count: int) -> float:
    """Finished runs of `CALLER`'s tenant with all that a real one has, of the same day; the seconds it took."""
    source = "copies copy, %s old WHERE old.tenant_id = '{tenant}' AND {own}"
    return await _filled(server, _OF_A_RUN, source, copies=count)


async def _filled(server: Server, tables: dict[str, dict[str, str]], source: str, *, copies: int = 0) -> float:
    # As nobody but the bench may: past row-level security, and without looking up what a copy refers to.
    connection = await asyncpg.connect(server.dsn("postgres"), server_settings={"search_path": "agentos"})
    began = time.perf_counter()
    try:
        await connection.execute("SET session_replication_role = replica; SET jit = off")
        if copies:
            run = await connection.fetchval(
                "SELECT id FROM runs WHERE tenant_id = $1 AND status = 'succeeded' ORDER BY id LIMIT 1", CALLER.tenant
            )
            await connection.execute(
                f"""
                CREATE TEMP TABLE copies AS
                SELECT n, uuidv7(at - clock_timestamp()) AS id, at
                FROM generate_series(1, {copies}) AS n,
                     LATERAL (SELECT ao_today()::timestamp AT TIME ZONE 'UTC'
                                     + (now() - ao_today()::timestamp AT TIME ZONE 'UTC') * n / ({copies} + 1) AS at) made
                """,
                timeout=_SECONDS,
            )
        for table, changed in tables.items():
            columns = [
                row["column_name"]
                for row in await connection.fetch(
                    "SELECT column_name FROM information_schema.columns "
                    "WHERE table_schema = 'agentos' AND table_name = $1 ORDER BY ordinal_position",
                    table,
                )
            ]
            chosen = ", ".join(changed.get(column, f"old.{column}") for column in columns)
            if copies:
                own = {
                    "runs": f"old.id = '{run}'",
                    "audit_log": f"old.subject = 'run_{run.hex}'",
                }.get(table, f"old.run_id = '{run}'")
                rows = (source % table).format(tenant=CALLER.tenant, own=own)
            else:
                rows = source % table
            statement = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM {rows}"
            await connection.execute(statement, timeout=_SECONDS)
        await connection.execute("VACUUM ANALYZE", timeout=_SECONDS)
        await connection.execute("CHECKPOINT", timeout=_SECONDS)
        return time.perf_counter() - began
    finally:
        with suppress(TimeoutError):
            await connection.close(timeout=5)
