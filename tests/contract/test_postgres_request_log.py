"""The kit over PostgreSQL's RequestLog."""

from collections.abc import AsyncIterator

import pytest

from conformance.request_log import RequestLogContract
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresRequestLogHarness, closing


class TestPostgresRequestLog(RequestLogContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresRequestLogHarness]:
        async with closing(PostgresRequestLogHarness(await borrow())) as harness:
            yield harness
