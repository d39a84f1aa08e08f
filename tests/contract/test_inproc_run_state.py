"""The kit over the in-process RunState."""

from collections.abc import AsyncIterator

import pytest

from conformance.run_state import RunStateContract
from tests.support.inproc import InprocRunStateHarness, closing


class TestInprocRunState(RunStateContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocRunStateHarness]:
        async with closing(InprocRunStateHarness()) as harness:
            yield harness
