"""The kit over PostgreSQL's Administration port."""

from collections.abc import AsyncIterator

import pytest

from conformance.administration import AdministrationContract
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresAdministrationHarness, closing


class TestPostgresAdministration(AdministrationContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresAdministrationHarness]:
        async with closing(PostgresAdministrationHarness(await borrow())) as harness:
            yield harness
