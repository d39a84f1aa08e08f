"""The kit over the in-process AgentRegistry."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import agent
from conformance.agent import AgentContract
from ports.agent import AgentRegistry
from tests.support.inproc import InprocHarness, closing


class TestInprocAgent(AgentContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[AgentRegistry]]:
        async with closing(InprocHarness(agent.SPEC)) as harness:
            yield harness
