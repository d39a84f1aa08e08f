"""The kit over PostgreSQL's Event port."""

from collections.abc import AsyncIterator

import pytest

from conformance.event import EventContract
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresEventHarness, closing


class TestPostgresEvent(EventContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresEventHarness]:
        async with closing(PostgresEventHarness(await borrow())) as harness:
            yield harness
