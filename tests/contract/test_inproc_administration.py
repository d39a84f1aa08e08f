"""The kit over the in-process Administration."""

from collections.abc import AsyncIterator

import pytest

from conformance.administration import AdministrationContract
from tests.support.inproc import InprocAdministrationHarness, closing


class TestInprocAdministration(AdministrationContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocAdministrationHarness]:
        async with closing(InprocAdministrationHarness()) as harness:
            yield harness
