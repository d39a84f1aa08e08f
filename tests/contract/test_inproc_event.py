"""The kit over the in-process Event port."""

from collections.abc import AsyncIterator

import pytest

from conformance.event import EventContract
from tests.support.inproc import InprocEventHarness, closing


class TestInprocEvent(EventContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocEventHarness]:
        async with closing(InprocEventHarness()) as harness:
            yield harness
