"""The kit over the pattern detector."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from msgspec import Struct

from adapters import regex_pii
from adapters.regex_pii.detector import RegexPiiConfig
from conformance.clock import ManualClock
from conformance.pii import PiiContract
from ports.adapter import Given
from ports.pii import PiiDetector


class RegexPiiHarness:
    def __init__(self, closing: AsyncExitStack) -> None:
        self._closing = closing

    @property
    def declared(self) -> Struct:
        return regex_pii.SPEC.capabilities(RegexPiiConfig())

    async def open(self) -> PiiDetector:
        return await self._closing.enter_async_context(
            regex_pii.SPEC.open(RegexPiiConfig(), Given(clock=ManualClock()))
        )


class TestRegexPii(PiiContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[RegexPiiHarness]:
        async with AsyncExitStack() as closing:
            yield RegexPiiHarness(closing)
