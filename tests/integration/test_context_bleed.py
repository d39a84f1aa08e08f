"""A pooled connection never carries one tenant's identity, transaction or locks to the next borrower."""

import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.statements import statement
from ports.errors import AgentOSError, Conflict, Internal, InvalidArgument
from ports.ids import TenantId
from tests.support.postgres import Clone, cloned

SEED: Final = 20_261_120
ROUNDS: Final = 400
TENANTS: Final = tuple(TenantId(f"tnt_{name}") for name in ("acme", "globex", "initech"))

INSERT: Final = statement(
    "INSERT INTO memory_items (tenant_id, namespace, key, value, metadata, words, updated_at) "
    "VALUES (:tenant, 'default', 'x', '{}', '{}', 0, now())"
)
SEEN: Final = statement("SELECT tenant_id FROM memory_items")
BOUND: Final = statement("SELECT current_setting('app.tenant_id', true) AS tenant")
BROKEN: Final = statement("SELECT 1 / 0")
SLOW: Final = statement("SELECT pg_sleep(1)")


@pytest.mark.anyio
class TestContextBleed:
    @pytest.fixture
    async def clone(self) -> AsyncIterator[Clone]:
        async with cloned() as clone:
            yield clone

    @pytest.fixture
    async def database(self, clone: Clone) -> AsyncIterator[Database]:
        async with open_database(PostgresConfig(dsn=clone.app, pool_size=1)) as database:
            for tenant in TENANTS:
                async with database.transaction(tenant) as transaction:
                    await transaction.rows(INSERT, {"tenant": tenant})
            yield database

    async def test_tenants_interleaved_with_errors_and_cancellations_see_their_own_only(
        self, database: Database
    ) -> None:
        dice = random.Random(SEED)  # noqa: S311 - repeats the same accidents each time
        strays = 0

        for _ in range(ROUNDS):
            tenant = dice.choice(TENANTS)
            accident = dice.choices(
                ["none", "error", "statement", "cancel", "error while cancelled", "mid-statement"], [8, 4, 4, 4, 4, 1]
            )[0]
            try:
                with anyio.CancelScope() as scope:
                    async with database.transaction(tenant) as transaction:
                        seen = await transaction.rows(SEEN, {})
                        strays += [row["tenant_id"] for row in seen] != [tenant]
                        await happen(accident, scope, transaction)
            except AgentOSError:
                assert accident in {"error", "statement", "error while cancelled"}
            async with database.transaction() as transaction:
                strays += await transaction.rows(SEEN, {}) != []
                bound = await transaction.row(BOUND, {})
                assert bound is not None
                strays += bound["tenant"] not in {None, ""}

        assert strays == 0

    async def test_a_transaction_left_open_is_not_handed_on(self, database: Database) -> None:
        async with database.pool.acquire() as connection:
            await connection.execute("BEGIN; SET LOCAL app.tenant_id = 'tnt_acme'")

        async with database.transaction() as transaction:
            assert await transaction.rows(SEEN, {}) == []

    async def test_a_statement_that_failed_can_not_be_committed_over(self, database: Database) -> None:
        fresh = TenantId("tnt_hooli")

        async def carry_on() -> None:
            async with database.transaction(fresh) as transaction:
                await transaction.rows(INSERT, {"tenant": fresh})
                with suppress(asyncpg.PostgresError):
                    await transaction.rows(BROKEN, {})

        with pytest.raises(Internal, match="ROLLBACK"):
            await carry_on()

        async with database.transaction(fresh) as transaction:
            assert await transaction.rows(SEEN, {}) == []

    @pytest.mark.parametrize("tenant", ["", "acme", "tnt_a'; DROP TABLE runs; --", "tnt_A", "tnt_\n"])
    async def test_what_can_not_be_a_tenant_is_never_bound(self, database: Database, tenant: str) -> None:
        with pytest.raises(InvalidArgument):
            async with database.transaction(TenantId(tenant)):
                pass

    async def test_injected_sql_can_not_change_the_tenant_inside_a_query(self, database: Database) -> None:
        switch = statement("SELECT set_config('app.tenant_id', 'tnt_globex', true)")

        with pytest.raises(Internal):
            async with database.transaction(TENANTS[0]) as transaction:
                await transaction.rows(switch, {})


async def happen(accident: str, scope: anyio.CancelScope, transaction: Transaction) -> None:
    match accident:
        case "error":
            raise Conflict("as it happens")
        case "statement":
            await transaction.rows(BROKEN, {})
        case "cancel":
            scope.cancel()
        case "error while cancelled":
            scope.cancel()
            raise Conflict("as it happens")
        case "mid-statement":
            async with anyio.create_task_group() as group:
                group.start_soon(transaction.rows, SLOW, {})
                await anyio.lowlevel.checkpoint()
                scope.cancel()
