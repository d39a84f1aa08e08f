"""The catalogue of a migrated database keeps every rule, and every rule can tell."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.catalogue_lint import BREAKAGES, RULES
from tests.support.postgres import Clone, cloned, fetch


@pytest.mark.anyio
class TestCatalogue:
    @pytest.fixture
    async def database(self) -> AsyncIterator[Clone]:
        async with cloned() as database:
            yield database

    async def test_every_rule_is_kept(self, database: Clone) -> None:
        offences = {rule: [row[0] for row in await fetch(database.superuser, query)] for rule, query in RULES.items()}

        assert offences == {rule: [] for rule in RULES}

    async def test_the_lint_sees_the_tables_it_is_about(self, database: Clone) -> None:
        rows = await fetch(
            database.superuser,
            "SELECT DISTINCT table_name FROM information_schema.columns "
            "WHERE table_schema = 'agentos' AND column_name = 'tenant_id' "
            "AND table_name NOT LIKE 'ao\\_%' AND table_name NOT LIKE 'run\\_events\\_%' "
            "AND table_name NOT LIKE 'request\\_records\\_%'",
        )

        assert {"tenants", "api_keys", "agents", "runs", "steps", "run_events", "audit_log"} <= {row[0] for row in rows}
        assert len(rows) == 33

    @pytest.mark.parametrize("rule", RULES)
    async def test_a_rule_that_is_broken_is_reported(self, database: Clone, rule: str) -> None:
        connection = await asyncpg.connect(database.superuser)
        # What a role is member of holds for the whole server, so nothing of it may be committed.
        breaking = connection.transaction()
        try:
            await breaking.start()
            await connection.execute(f"SET LOCAL search_path = agentos; {BREAKAGES[rule]}")
            offences = await connection.fetch(RULES[rule])
        finally:
            await breaking.rollback()
            await connection.close()

        assert offences != []

    async def test_the_other_tables_hold_nothing_of_a_tenant(self, database: Clone) -> None:
        rows = await fetch(
            database.superuser,
            """
            SELECT c.relname FROM pg_class c
            WHERE c.relnamespace = 'agentos'::regnamespace AND c.relkind IN ('r', 'p')
              AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id')
            """,
        )

        # Of moves: what they hold of tenants is between whoever moves them and the definer's functions.
        moves = {"tenant_homes", "tenant_stays", "tenant_moves", "tenant_changes", "tenant_copies"}
        # How far upkeep has looked through a day; the definer's functions alone get at it.
        upkeep = {"event_days_to_thin"}
        node = {"node", "workers", "schema_migrations", "gateway_configurations"}
        assert {row[0] for row in rows} == {*node, *moves, *upkeep}
        for table in moves:
            privileges = "SELECT, INSERT, UPDATE, DELETE"
            [row] = await fetch(
                database.superuser,
                "SELECT has_table_privilege('ao_app', c.oid, $2) OR NOT c.relforcerowsecurity "
                "OR has_table_privilege('ao_control', c.oid, 'INSERT, UPDATE, DELETE') AS open "
                "FROM pg_class c "
                "WHERE c.oid = to_regclass($1)",
                f"agentos.{table}",
                privileges,
            )
            assert not row["open"], table
