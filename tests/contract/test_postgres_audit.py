"""The kit over PostgreSQL's audit."""

from collections.abc import AsyncIterator

import pytest

from conformance.audit import AuditContract
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresAuditHarness, closing


class TestPostgresAudit(AuditContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresAuditHarness]:
        async with closing(PostgresAuditHarness(await borrow())) as harness:
            yield harness
