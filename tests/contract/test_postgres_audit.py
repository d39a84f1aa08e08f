"""The kit over PostgreSQL's audit."""

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from conformance.audit import AuditContract
from tests.support.postgres import borrow, give_back
from tests.support.postgres_harness import PostgresAuditHarness, closing


class TestPostgresAudit(AuditContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresAuditHarness]:
        async with closing(PostgresAuditHarness(await borrow())) as harness:
            yield harness


class TestPostgresAuditOfHomes(AuditContract):
    """Of a node with a home beside its database."""

    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresAuditHarness]:
        home = await borrow()
        try:
            async with closing(PostgresAuditHarness(await borrow())) as harness:
                harness.config = replace(harness.config, homes=(("eu1", home.control),))
                yield harness
        finally:
            await give_back(home)
