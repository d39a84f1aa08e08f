"""The kit over PostgreSQL's audit."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import audit
from conformance.audit import AuditContract
from ports.audit import AuditLog
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresHarness, closing


class TestPostgresAudit(AuditContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresHarness[AuditLog]]:
        async with closing(PostgresHarness(audit.SPEC, await borrow())) as harness:
            yield harness
