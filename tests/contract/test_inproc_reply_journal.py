"""The kit over the in-process ReplyJournal."""

from collections.abc import AsyncIterator

import pytest

from adapters.inproc import reply_journal
from conformance.reply_journal import ReplyJournalContract
from ports.reply_journal import ReplyJournal
from tests.support.inproc import InprocHarness, closing


class TestInprocReplyJournal(ReplyJournalContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocHarness[ReplyJournal]]:
        async with closing(InprocHarness(reply_journal.SPEC)) as harness:
            yield harness
