"""What every ReplyJournal must show. Clauses: `ports.reply_journal`."""

from datetime import timedelta
from typing import Final

import anyio
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import ReplyJournalHarness
from conformance.people import ACME, FOREIGNERS, Foreigner
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument
from ports.messages import Json
from ports.reply_journal import RETENTION, Busy, Done, Opened, ReplyJournal, Ticket, Won

KEY: Final = "run_1:1"
LEASE: Final = timedelta(seconds=30)
REPLY: Final = {
    "reply": {"choices": [{"index": 0, "message": {"content": "grüß Gott 🦭"}}], "none": None},
    "n": [1, 2.5],
}


async def opened(journal: ReplyJournal, auth: AuthContext = ACME, *, key: str = KEY, digest: str = "same") -> Opened:
    return await journal.open(auth, key, digest, lease=LEASE)


async def won(journal: ReplyJournal, auth: AuthContext = ACME, *, key: str = KEY, digest: str = "same") -> Won:
    found = await opened(journal, auth, key=key, digest=digest)
    assert isinstance(found, Won), found
    return found


async def is_busy(journal: ReplyJournal) -> bool:
    return isinstance(await opened(journal), Busy)


async def assert_fenced(journal: ReplyJournal, ticket: Ticket, auth: AuthContext = ACME) -> None:
    with pytest.raises(Conflict) as extending:
        await journal.extend(auth, ticket, lease=LEASE)
    with pytest.raises(Conflict) as completing:
        await journal.complete(auth, ticket, {"reply": "too late"})
    with pytest.raises(Conflict) as abandoning:
        await journal.abandon(auth, ticket, maybe_made=False)
    assert {error.value.code for error in (extending, completing, abandoning)} == {"fenced"}


@pytest.mark.anyio
class ReplyJournalContract(Contract):
    @clause("RPL-1")
    async def test_of_fifty_at_once_one_wins(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        found: list[Opened] = []

        async def attempt() -> None:
            found.append(await opened(journal))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(attempt)

        assert sorted(type(one).__name__ for one in found) == ["Busy"] * 49 + ["Won"]
        assert [one.possible_duplicate for one in found if isinstance(one, Won)] == [False]

    @clause("RPL-1")
    async def test_a_held_entry_says_how_long_it_is_held(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        before = await harness.now()

        await won(journal)
        await harness.advance(LEASE / 2)

        found = await opened(journal)
        assert isinstance(found, Busy)
        assert timedelta(0) <= found.lease_until - before - LEASE < LEASE / 2

    @clause("RPL-2")
    @pytest.mark.parametrize(
        "outcome", [REPLY, {"error": {"code": "invalid_request"}}, None, "text", {"reply": "x" * 3_000_000}],
        ids=["reply", "error", "null", "text", "large"],
    )  # fmt: skip
    async def test_what_was_completed_answers_everyone_who_asks(
        self, harness: ReplyJournalHarness, outcome: Json
    ) -> None:
        journal = await harness.open()
        first = await won(journal)

        await journal.complete(ACME, first.ticket, outcome)

        assert [await opened(journal) for _ in range(2)] == [Done(outcome=outcome)] * 2

    @clause("RPL-2")
    async def test_completing_again_changes_nothing(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)
        await journal.complete(ACME, first.ticket, REPLY)

        await journal.complete(ACME, first.ticket, {"reply": "another"})

        assert await opened(journal) == Done(outcome=REPLY)

    @clause("RPL-3")
    @pytest.mark.parametrize("state", ["held", "completed", "lapsed"])
    async def test_another_request_under_the_same_key_conflicts(self, harness: ReplyJournalHarness, state: str) -> None:
        journal = await harness.open()
        first = await won(journal)
        if state == "completed":
            await journal.complete(ACME, first.ticket, REPLY)
        if state == "lapsed":
            await harness.advance(LEASE * 2)

        with pytest.raises(Conflict) as refusal:
            await opened(journal, digest="another")

        assert refusal.value.code == "idempotency_key_reused"
        if state != "completed":
            await journal.complete(ACME, first.ticket, REPLY)
        assert await opened(journal) == Done(outcome=REPLY)

    @clause("RPL-4")
    async def test_a_lapsed_entry_is_won_again_and_may_be_a_duplicate(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        await won(journal)

        await harness.advance(LEASE / 2)
        meanwhile = await is_busy(journal)
        await harness.advance(LEASE)

        assert meanwhile
        assert (await won(journal)).possible_duplicate
        assert await is_busy(journal)

    @clause("RPL-4")
    async def test_a_lapsed_entry_that_nobody_took_can_still_be_completed(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)

        await harness.advance(LEASE * 2)
        await journal.complete(ACME, first.ticket, REPLY)

        assert await opened(journal) == Done(outcome=REPLY)

    @clause("RPL-5")
    async def test_extending_keeps_the_entry(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)

        for _ in range(3):
            await harness.advance(LEASE * 2 / 3)
            assert await journal.extend(ACME, first.ticket, lease=LEASE) is False

        assert await is_busy(journal)
        await harness.advance(LEASE * 4 / 3)
        assert (await won(journal)).possible_duplicate

    @clause("RPL-6")
    async def test_an_abandoned_entry_that_cannot_have_been_made_is_as_good_as_none(
        self, harness: ReplyJournalHarness
    ) -> None:
        journal = await harness.open()
        first = await won(journal)

        await journal.abandon(ACME, first.ticket, maybe_made=False)

        assert (await won(journal, digest="another")).possible_duplicate is False

    @clause("RPL-6")
    async def test_an_abandoned_entry_that_may_have_been_made_says_so(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)

        await journal.abandon(ACME, first.ticket, maybe_made=True)

        assert (await won(journal)).possible_duplicate

    @clause("RPL-6")
    async def test_abandoning_does_not_hide_what_an_earlier_holder_may_have_made(
        self, harness: ReplyJournalHarness
    ) -> None:
        journal = await harness.open()
        await won(journal)
        await harness.advance(LEASE * 2)
        second = await won(journal)

        await journal.abandon(ACME, second.ticket, maybe_made=False)

        assert (await won(journal)).possible_duplicate

    @clause("RPL-7")
    async def test_whoever_was_overtaken_holds_nothing(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)
        await harness.advance(LEASE * 2)
        second = await won(journal)

        await assert_fenced(journal, first.ticket)
        await journal.complete(ACME, second.ticket, REPLY)
        await assert_fenced(journal, first.ticket)

        assert await opened(journal) == Done(outcome=REPLY)

    @clause("RPL-7")
    @pytest.mark.parametrize("maybe_made", [True, False])
    async def test_whoever_abandoned_holds_nothing(self, harness: ReplyJournalHarness, *, maybe_made: bool) -> None:
        journal = await harness.open()
        first = await won(journal)

        await journal.abandon(ACME, first.ticket, maybe_made=maybe_made)

        await assert_fenced(journal, first.ticket)
        second = await won(journal)
        await assert_fenced(journal, first.ticket)
        assert await journal.extend(ACME, second.ticket, lease=LEASE) is False

    @clause("RPL-7")
    async def test_a_completed_entry_is_neither_extended_nor_abandoned(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)
        await journal.complete(ACME, first.ticket, REPLY)

        with pytest.raises(Conflict):
            await journal.extend(ACME, first.ticket, lease=LEASE)
        with pytest.raises(Conflict):
            await journal.abandon(ACME, first.ticket, maybe_made=False)

        assert await opened(journal) == Done(outcome=REPLY)

    @clause("RPL-8")
    async def test_a_cancel_reaches_the_holder_and_only_it(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)
        other = await won(journal, key="run_1:2")

        told = await journal.cancel(ACME, KEY)

        assert told is True
        assert await journal.extend(ACME, first.ticket, lease=LEASE) is True
        assert await journal.extend(ACME, other.ticket, lease=LEASE) is False
        await journal.abandon(ACME, first.ticket, maybe_made=True)
        second = await won(journal)
        assert await journal.extend(ACME, second.ticket, lease=LEASE) is False

    @clause("RPL-8")
    async def test_what_nobody_holds_is_not_cancelled(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        lapsed = await won(journal, key="lapsed")
        await harness.advance(LEASE * 2)
        completed = await won(journal, key="completed")
        await journal.complete(ACME, completed.ticket, REPLY)

        told = [await journal.cancel(ACME, key) for key in ("absent", "lapsed", "completed")]

        assert told == [False] * 3
        assert await opened(journal, key="completed") == Done(outcome=REPLY)
        assert await journal.extend(ACME, lapsed.ticket, lease=LEASE) is False

    @clause("RPL-9")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda one: one.name)
    async def test_a_key_is_another_entry_elsewhere(self, harness: ReplyJournalHarness, foreigner: Foreigner) -> None:
        journal = await harness.open()
        first = await won(journal)

        theirs = await won(journal, foreigner.auth, digest="theirs")
        await assert_fenced(journal, first.ticket, foreigner.auth)
        await journal.complete(foreigner.auth, theirs.ticket, {"reply": "theirs"})

        assert await is_busy(journal)
        await journal.complete(ACME, first.ticket, REPLY)
        assert await opened(journal) == Done(outcome=REPLY)
        assert await opened(journal, foreigner.auth, digest="theirs") == Done(outcome={"reply": "theirs"})

    @clause("RPL-9")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda one: one.name)
    async def test_nobody_cancels_what_is_others(self, harness: ReplyJournalHarness, foreigner: Foreigner) -> None:
        journal = await harness.open()
        first = await won(journal)

        assert await journal.cancel(foreigner.auth, KEY) is False

        assert await journal.extend(ACME, first.ticket, lease=LEASE) is False

    @clause("RPL-10")
    async def test_an_outcome_is_kept_for_its_time_and_then_forgotten(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)
        await harness.advance(LEASE / 2)
        await journal.complete(ACME, first.ticket, REPLY)

        await harness.advance(RETENTION - LEASE / 4)
        kept = await opened(journal)
        await harness.advance(LEASE)

        assert kept == Done(outcome=REPLY)
        assert (await won(journal, digest="another")).possible_duplicate is False

    @clause("RPL-10")
    async def test_an_entry_that_nobody_came_back_for_is_forgotten(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        await won(journal)

        await harness.advance(RETENTION + LEASE)

        assert (await won(journal, digest="another")).possible_duplicate is False

    @clause("RPL-10")
    async def test_an_entry_is_forgotten_as_soon_as_its_last_opener_said(self, harness: ReplyJournalHarness) -> None:
        journal, short = await harness.open(), 8 * LEASE
        first = await journal.open(ACME, KEY, "same", lease=LEASE)
        await harness.advance(2 * LEASE)
        again = await journal.open(ACME, KEY, "same", lease=LEASE, keep=short)
        assert isinstance(first, Won)
        assert isinstance(again, Won)
        await harness.advance(LEASE / 2)
        await journal.complete(ACME, again.ticket, REPLY)

        await harness.advance(short - LEASE / 2)
        kept = await journal.open(ACME, KEY, "same", lease=LEASE, keep=short)
        await harness.advance(LEASE)
        gone = await journal.open(ACME, KEY, "same", lease=LEASE, keep=short)

        assert kept == Done(outcome=REPLY)
        assert isinstance(gone, Won)
        assert not gone.possible_duplicate

    @clause("RPL-10")
    @pytest.mark.parametrize("keep", [timedelta(0), RETENTION + timedelta(seconds=1)])
    async def test_how_long_an_entry_is_kept_has_bounds(self, harness: ReplyJournalHarness, keep: timedelta) -> None:
        journal = await harness.open()

        with pytest.raises(InvalidArgument):
            await journal.open(ACME, KEY, "same", lease=LEASE, keep=keep)

        assert isinstance(await opened(journal), Won)

    @clause("RPL-10")
    async def test_an_entry_that_is_still_held_is_not_forgotten(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)

        await journal.extend(ACME, first.ticket, lease=RETENTION * 2)
        await harness.advance(RETENTION + LEASE)

        assert await is_busy(journal)

    @clause("RPL-11")
    async def test_everything_is_there_for_a_journal_opened_anew(self, harness: ReplyJournalHarness) -> None:
        journal = await harness.open()
        first = await won(journal)
        done = await won(journal, key="run_1:2")
        await journal.complete(ACME, done.ticket, REPLY)

        again = await harness.reopen()

        assert await opened(again, key="run_1:2") == Done(outcome=REPLY)
        assert await is_busy(again)
        await again.complete(ACME, first.ticket, REPLY)
        assert await opened(journal) == Done(outcome=REPLY)
