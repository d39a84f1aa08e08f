"""The kit over PostgreSQL's store of the gateway's configuration."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import gateway_configuration
from conformance.gateway_configuration import GatewayConfigurationContract
from ports.gateway_configuration import GatewayConfigurations
from tests.support.postgres import borrow
from tests.support.postgres_harness import PlatformHarness, closing


class TestPostgresGatewayConfiguration(GatewayConfigurationContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PlatformHarness[GatewayConfigurations]]:
        async with closing(PlatformHarness(gateway_configuration.SPEC, await borrow())) as harness:
            yield harness
