"""The kit over the in-process Maintenance port."""

from collections.abc import AsyncIterator

import pytest

from conformance.maintenance import MaintenanceContract
from tests.support.inproc import InprocMaintenanceHarness, closing


class TestInprocMaintenance(MaintenanceContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocMaintenanceHarness]:
        async with closing(InprocMaintenanceHarness()) as harness:
            yield harness
