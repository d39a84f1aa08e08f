"""The kit over PostgreSQL's Queue port."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import queue
from conformance.queue import QueueContract
from ports.queue import QueuePort
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresHarness, closing


class TestPostgresQueue(QueueContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresHarness[QueuePort]]:
        async with closing(PostgresHarness(queue.SPEC, await borrow())) as harness:
            yield harness
