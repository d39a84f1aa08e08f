"""The kit over PostgreSQL's Budget port."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import budget
from conformance.budget import BudgetContract
from ports.budget import BudgetLedger
from tests.support.postgres import borrow
from tests.support.postgres_harness import PlatformHarness, closing


class TestPostgresBudget(BudgetContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PlatformHarness[BudgetLedger]]:
        async with closing(PlatformHarness(budget.SPEC, await borrow())) as harness:
            yield harness
