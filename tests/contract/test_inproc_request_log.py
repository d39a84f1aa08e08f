"""The kit over the in-process RequestLog."""

from collections.abc import AsyncIterator

import pytest

from conformance.request_log import RequestLogContract
from tests.support.inproc import InprocRequestLogHarness, closing


class TestInprocRequestLog(RequestLogContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocRequestLogHarness]:
        async with closing(InprocRequestLogHarness()) as harness:
            yield harness
