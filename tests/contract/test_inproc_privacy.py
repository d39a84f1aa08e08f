"""The kit over the in-process Privacy port."""

from collections.abc import AsyncIterator

import pytest

from conformance.privacy import PrivacyContract
from tests.support.inproc import InprocPrivacyHarness, closing


class TestInprocPrivacy(PrivacyContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocPrivacyHarness]:
        async with closing(InprocPrivacyHarness()) as harness:
            yield harness
