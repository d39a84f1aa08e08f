"""The reply journal's table stays as small as its retention says, without a job."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from adapters.postgres.reply_journal import FORGOTTEN_AT_ONCE, SPEC
from conformance.people import ACME, GLOBEX
from ports.reply_journal import RETENTION, ReplyJournal, Won
from tests.support.postgres import borrow, fetch
from tests.support.postgres_harness import PostgresHarness, closing

LEASE = timedelta(seconds=30)


@pytest.mark.anyio
class TestSweeping:
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PostgresHarness[ReplyJournal]]:
        async with closing(PostgresHarness(SPEC, await borrow())) as harness:
            yield harness

    async def test_whoever_opens_an_entry_sweeps_old_ones_away_whoevers_they_are(
        self, harness: PostgresHarness[ReplyJournal]
    ) -> None:
        journal = await harness.open()
        for n in range(FORGOTTEN_AT_ONCE + 1):
            won = await journal.open(ACME, f"old:{n}", "d", lease=LEASE)
            assert isinstance(won, Won)
            if n > 0:
                await journal.complete(ACME, won.ticket, {"reply": n})
        held = await journal.open(ACME, "held", "d", lease=RETENTION * 2)
        assert isinstance(held, Won)
        await harness.advance(RETENTION - LEASE)

        left = []
        for n in range(3):
            if n == 1:
                await harness.advance(LEASE * 2)
            await journal.open(GLOBEX, f"new:{n}", "d", lease=LEASE)
            rows = await fetch(harness.database.admin, "SELECT step_key FROM model_replies ORDER BY step_key")
            left.append([row["step_key"] for row in rows if not row["step_key"].startswith("new")])

        assert [len(keys) for keys in left] == [FORGOTTEN_AT_ONCE + 2, 2, 1]
        assert left[2] == ["held"]
