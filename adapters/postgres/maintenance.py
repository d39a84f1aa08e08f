"""MaintenancePort over PostgreSQL: days of events and requests are made ahead and dropped whole; runs go in batches.

A run goes first, at once with its journal, its key and the bodies nobody else needs, and with that its events are out of
reach. Their day is dropped when no run of it is left; where one stays, those of the others are taken out of it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import asyncpg
from msgspec import Struct

from adapters.postgres.bootstrap import SCHEMA
from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.rows import Row
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.errors import AgentOSError
from ports.maintenance import MaintenancePort, Upkeep, check_retention

_SQL: Final = load("maintenance")
DAYS_AHEAD: Final = 7
"""A node whose workers stood still for longer writes to the default partition until they are back."""
BATCH: Final = 200
"""Runs that one call removes at most; well within a statement's time."""
ROWS: Final = 2_000
"""Texts, and as many replies, requests of days that are held, and runs of days that stay: a row each."""


class PostgresMaintenance:
    """Satisfies `MaintenancePort`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        auth.require(RUNS_ANY_TENANT)
        check_retention(retention)
        days = -(-retention // timedelta(days=1))
        failed: list[AgentOSError] = []

        async def step(name: str, asked: dict[str, int]) -> Row | None:
            """In a transaction of its own: none holds up the others' locks, nor keeps the others from their turn."""
            try:
                async with self._database.transaction(auth.tenant) as transaction:
                    [row] = await transaction.rows(_SQL[name], asked)
                    return row
            except AgentOSError as error:
                failed.append(error)
                return None

        # Whoever writes needs the days to come; what tenants keep for less time may be much.
        await step("make_event_days", {"ahead": DAYS_AHEAD})
        await step("make_request_days", {"ahead": DAYS_AHEAD})
        runs = await step("forget_runs", {"days": days, "limit": BATCH})
        requests = await step("forget_requests", {"days": days, "limit": ROWS})
        thinned = await step("thin_request_days", {"days": days, "limit": ROWS})
        await step("drop_request_days", {"days": days})
        more = runs is not None and runs["removed"] == BATCH
        if runs is not None and not more:
            await step("drop_event_days", {"days": days})
            events = await step("thin_event_days", {"limit": ROWS})
            more = events is not None and events["more"]
        retained = await step("retain", {"limit": BATCH})
        if runs is None or requests is None or thinned is None or retained is None or failed:
            raise failed[0]
        return Upkeep(
            runs_removed=runs["removed"] + retained["runs"],
            more=more or ROWS in (requests["removed"], thinned["removed"]) or retained["most"] == BATCH,
        )


async def make_event_days(dsn: str) -> int:
    """Make the partitions of the days to come, as any role that may; how many were missing. For whoever migrates."""
    connection = await asyncpg.connect(dsn, timeout=10, command_timeout=30, server_settings={"search_path": SCHEMA})
    try:
        made: int = await connection.fetchval("SELECT ao_make_event_days($1)", DAYS_AHEAD)
        records: int = await connection.fetchval("SELECT ao_make_request_days($1)", DAYS_AHEAD)
        return made + records
    finally:
        await connection.close()


class MaintenanceCapabilities(Struct, frozen=True, kw_only=True):
    """None yet."""


@asynccontextmanager
async def open_maintenance(config: PostgresConfig, _given: Given) -> AsyncIterator[MaintenancePort]:
    async with open_database(config) as database:
        yield PostgresMaintenance(database)


SPEC: Final[AdapterSpec[PostgresConfig, MaintenancePort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: MaintenanceCapabilities(), open=open_maintenance
)
