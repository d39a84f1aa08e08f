"""The kit over the in-process TenantDirectory."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import tenant
from conformance.tenant import TenantContract
from ports.tenant import TenantDirectory
from tests.support.inproc import InprocHarness, closing


class TestInprocTenant(TenantContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[TenantDirectory]]:
        async with closing(InprocHarness(tenant.SPEC)) as harness:
            yield harness
