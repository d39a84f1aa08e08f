"""A pooled connection never carries one tenant's identity, transaction or locks to the next borrower."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import asyncpg
import pytest

from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.statements import statement
from ports.errors import Internal, InvalidArgument
from ports.ids import TenantId
from tests.faults.bleed import ACCIDENTS, BROKEN, INSERT, SEEN, TENANTS, bleed, populate
from tests.support.postgres import Clone, cloned

SEED: Final = 20_261_120
ROUNDS: Final = 600


@pytest.mark.anyio
class TestContextBleed:
    @pytest.fixture
    async def clone(self) -> AsyncIterator[Clone]:
        async with cloned() as clone:
            yield clone

    @pytest.fixture
    async def database(self, clone: Clone) -> AsyncIterator[Database]:
        async with open_database(PostgresConfig(dsn=clone.app, pool_size=1)) as database:
            await populate(database)
            yield database

    async def test_tenants_interleaved_with_accidents_see_their_own_only(self, database: Database) -> None:
        """R12. Long: `python -m tests.faults.bleed`."""
        found = await bleed(database, ROUNDS, SEED)

        assert found.ok, found
        assert all(accident in str(found.figures["accidents"]) for accident in ACCIDENTS)

    async def test_a_connection_is_nobodys_between_two_transactions(self, database: Database) -> None:
        async with database.transaction(TENANTS[0]) as transaction:
            assert await transaction.rows(SEEN, {}) != []

        assert await database.once(SEEN, {}) == []

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
