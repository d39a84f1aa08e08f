"""The kit over PostgreSQL's ReplyJournal."""

from collections.abc import AsyncIterator

import pytest

from adapters.postgres import reply_journal
from conformance.reply_journal import ReplyJournalContract
from ports.reply_journal import ReplyJournal
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresHarness, closing


class TestPostgresReplyJournal(ReplyJournalContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresHarness[ReplyJournal]]:
        async with closing(PostgresHarness(reply_journal.SPEC, await borrow())) as harness:
            yield harness
