"""The kit over PostgreSQL's Privacy port."""

from collections.abc import AsyncIterator

import pytest

from conformance.privacy import PrivacyContract
from tests.support.postgres import clone
from tests.support.postgres_harness import PostgresPrivacyHarness, closing


class TestPostgresPrivacy(PrivacyContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresPrivacyHarness]:
        async with closing(PostgresPrivacyHarness(await clone())) as harness:
            yield harness
