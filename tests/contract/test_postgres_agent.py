"""The kit over PostgreSQL's Agent port."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import agent
from conformance.agent import AgentContract
from ports.agent import AgentRegistry
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresHarness, closing


class TestPostgresAgent(AgentContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresHarness[AgentRegistry]]:
        async with closing(PostgresHarness(agent.SPEC, await borrow())) as harness:
            yield harness
