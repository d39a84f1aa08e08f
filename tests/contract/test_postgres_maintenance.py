"""The kit over PostgreSQL's Maintenance port."""

from collections.abc import AsyncIterator

import pytest

from conformance.maintenance import MaintenanceContract
from tests.support.postgres import clone
from tests.support.postgres_harness import PostgresMaintenanceHarness, closing


class TestPostgresMaintenance(MaintenanceContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresMaintenanceHarness]:
        async with closing(PostgresMaintenanceHarness(await clone())) as harness:
            yield harness
