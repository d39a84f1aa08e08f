"""The kit over PostgreSQL's Memory port."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import memory
from conformance.memory import MemoryContract
from ports.memory import MemoryPort
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresHarness, closing


class TestPostgresMemory(MemoryContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresHarness[MemoryPort]]:
        async with closing(PostgresHarness(memory.SPEC, await borrow())) as harness:
            yield harness
