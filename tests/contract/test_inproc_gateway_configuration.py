"""The kit over the in-process store of the gateway's configuration."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import gateway_configuration
from conformance.gateway_configuration import GatewayConfigurationContract
from ports.gateway_configuration import GatewayConfigurations
from tests.support.inproc import InprocHarness, closing


class TestInprocGatewayConfiguration(GatewayConfigurationContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[GatewayConfigurations]]:
        async with closing(InprocHarness(gateway_configuration.SPEC)) as harness:
            yield harness
