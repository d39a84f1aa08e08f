"""The kit over the in-process BudgetLedger."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import budget
from conformance.budget import BudgetContract
from ports.budget import BudgetLedger
from tests.support.inproc import InprocHarness, closing


class TestInprocBudget(BudgetContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[BudgetLedger]]:
        async with closing(InprocHarness(budget.SPEC)) as harness:
            yield harness
