"""The kit over the in-process MemoryPort."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import memory
from conformance.memory import MemoryContract
from ports.memory import MemoryPort
from tests.support.inproc import InprocHarness, closing


class TestInprocMemory(MemoryContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[MemoryPort]]:
        async with closing(InprocHarness(memory.SPEC)) as harness:
            yield harness
