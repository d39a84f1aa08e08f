"""The kit over PostgreSQL's Tenant port."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import tenant
from conformance.tenant import TenantContract
from ports.tenant import TenantDirectory
from tests.support.postgres import borrow
from tests.support.postgres_harness import PlatformHarness, closing


class TestPostgresTenant(TenantContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PlatformHarness[TenantDirectory]]:
        async with closing(PlatformHarness(tenant.SPEC, await borrow())) as harness:
            yield harness
