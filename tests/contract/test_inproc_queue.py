"""The kit over the in-process Queue."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import queue
from conformance.queue import QueueContract
from ports.queue import QueuePort
from tests.support.inproc import InprocHarness, closing


class TestInprocQueue(QueueContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[QueuePort]]:
        async with closing(InprocHarness(queue.SPEC)) as harness:
            yield harness
