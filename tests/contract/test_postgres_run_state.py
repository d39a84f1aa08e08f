"""The kit over PostgreSQL's RunState port."""

from collections.abc import AsyncIterator

import pytest

from conformance.run_state import RunStateContract
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresRunStateHarness, closing


class TestPostgresRunState(RunStateContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresRunStateHarness]:
        async with closing(PostgresRunStateHarness(await borrow())) as harness:
            yield harness
