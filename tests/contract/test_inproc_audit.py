"""The kit over the in-process audit."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import audit
from conformance.audit import AuditContract
from ports.audit import AuditLog
from tests.support.inproc import InprocHarness, closing


class TestInprocAudit(AuditContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[AuditLog]]:
        async with closing(InprocHarness(audit.SPEC)) as harness:
            yield harness
