"""Broken reply journals."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import reply_journal
from adapters.inproc.reply_journal import EntryRow, InprocReplyJournal
from adapters.inproc.store import Store, store
from conformance.reply_journal import ReplyJournalContract
from ports.context import AuthContext
from ports.errors import Conflict
from ports.ids import TenantId
from ports.messages import Json
from ports.reply_journal import RETENTION, Done, Opened, ReplyJournal, Ticket, Won, check_keep
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing


class BrokenReplyJournalHarness(InprocHarness[ReplyJournal]):
    def __init__(self, broken: type[InprocReplyJournal], *, forgetful: bool) -> None:
        super().__init__(reply_journal.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> ReplyJournal:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> ReplyJournal:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenReplyJournal(Mutant, ReplyJournalContract):
    broken: ClassVar[type[InprocReplyJournal]] = InprocReplyJournal
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenReplyJournalHarness]:
        async with closing(BrokenReplyJournalHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class Touching(InprocReplyJournal):
    """For mutants that look into the storage."""

    def row(self, auth: AuthContext, key: str) -> EntryRow | None:
        return self._rows.get((auth.tenant, auth.namespace, key))


class TestIsHonest(BrokenReplyJournal):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class LooksThenWrites(Touching):
    """Others act between its look at the entry and its hold."""

    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        free = self.row(auth, key) is None
        await self._clock.sleep(timedelta(0))
        if free:
            self._rows.pop((auth.tenant, auth.namespace, key), None)
        return await super().open(auth, key, digest, lease=lease, keep=keep)


class TestLooksThenWrites(BrokenReplyJournal):
    broken = LooksThenWrites
    caught_by = frozenset({"test_of_fifty_at_once_one_wins"})


class HoldsForHalfTheTime(InprocReplyJournal):
    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        return await super().open(auth, key, digest, lease=lease / 2, keep=keep)


class TestHoldsForHalfTheTime(BrokenReplyJournal):
    broken = HoldsForHalfTheTime
    caught_by = frozenset(
        {
            "test_a_held_entry_says_how_long_it_is_held",
            "test_a_lapsed_entry_is_won_again_and_may_be_a_duplicate",
        }
    )


class KeepsRepliesOnly(InprocReplyJournal):
    async def complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        if isinstance(outcome, dict) and "reply" in outcome:
            await super().complete(auth, ticket, outcome)
        else:
            await self.abandon(auth, ticket, maybe_made=False)


class TestKeepsRepliesOnly(BrokenReplyJournal):
    broken = KeepsRepliesOnly
    caught_by = frozenset({"test_what_was_completed_answers_everyone_who_asks"})


class CutsLongReplies(InprocReplyJournal):
    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        found = await super().open(auth, key, digest, lease=lease, keep=keep)
        if isinstance(found, Done) and len(str(found.outcome)) > 1_000_000:
            return Done(outcome=str(found.outcome)[:1_000_000])
        return found


class TestCutsLongReplies(BrokenReplyJournal):
    broken = CutsLongReplies
    caught_by = frozenset({"test_what_was_completed_answers_everyone_who_asks"})


class LastCompletionWins(Touching):
    async def complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        await super().complete(auth, ticket, outcome)
        row = self.row(auth, ticket.key)
        assert row is not None
        row.outcome = outcome


class TestLastCompletionWins(BrokenReplyJournal):
    broken = LastCompletionWins
    caught_by = frozenset({"test_completing_again_changes_nothing"})


class IgnoresDigests(InprocReplyJournal):
    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        del digest
        return await super().open(auth, key, "any", lease=lease, keep=keep)


class TestIgnoresDigests(BrokenReplyJournal):
    broken = IgnoresDigests
    caught_by = frozenset({"test_another_request_under_the_same_key_conflicts"})


class NeverSuspectsADuplicate(InprocReplyJournal):
    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        found = await super().open(auth, key, digest, lease=lease, keep=keep)
        return replace(found, possible_duplicate=False) if isinstance(found, Won) else found


class TestNeverSuspectsADuplicate(BrokenReplyJournal):
    broken = NeverSuspectsADuplicate
    caught_by = frozenset(
        {
            "test_a_lapsed_entry_is_won_again_and_may_be_a_duplicate",
            "test_extending_keeps_the_entry",
            "test_an_abandoned_entry_that_may_have_been_made_says_so",
            "test_abandoning_does_not_hide_what_an_earlier_holder_may_have_made",
        }
    )


class DropsLateOutcomes(Touching):
    async def complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        row = self.row(auth, ticket.key)
        if row is not None and not row.completed and row.lease_until <= self._clock.now():
            raise Conflict("too late", code="fenced")
        await super().complete(auth, ticket, outcome)


class TestDropsLateOutcomes(BrokenReplyJournal):
    broken = DropsLateOutcomes
    caught_by = frozenset(
        {
            "test_a_lapsed_entry_that_nobody_took_can_still_be_completed",
            "test_another_request_under_the_same_key_conflicts",
        }
    )


class ExtendsNothing(Touching):
    async def extend(self, auth: AuthContext, ticket: Ticket, *, lease: timedelta) -> bool:
        row = self.row(auth, ticket.key)
        before = None if row is None else row.lease_until
        told = await super().extend(auth, ticket, lease=lease)
        if row is not None and before is not None:
            row.lease_until = before
        return told


class TestExtendsNothing(BrokenReplyJournal):
    broken = ExtendsNothing
    caught_by = frozenset({"test_extending_keeps_the_entry", "test_an_entry_that_is_still_held_is_not_forgotten"})


class SuspectsEverybody(InprocReplyJournal):
    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        del maybe_made
        await super().abandon(auth, ticket, maybe_made=True)


class TestSuspectsEverybody(BrokenReplyJournal):
    broken = SuspectsEverybody
    caught_by = frozenset({"test_an_abandoned_entry_that_cannot_have_been_made_is_as_good_as_none"})


class ForgetsWhoMayHaveCalled(InprocReplyJournal):
    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        self._held(auth, ticket).possible_duplicate = False
        await super().abandon(auth, ticket, maybe_made=maybe_made)


class TestForgetsWhoMayHaveCalled(BrokenReplyJournal):
    broken = ForgetsWhoMayHaveCalled
    caught_by = frozenset({"test_abandoning_does_not_hide_what_an_earlier_holder_may_have_made"})


class TrustsAnyTicket(Touching):
    def _held(self, auth: AuthContext, ticket: Ticket) -> EntryRow:
        row = self.row(auth, ticket.key)
        if row is None or row.completed:
            return super()._held(auth, ticket)
        return row


class TestTrustsAnyTicket(BrokenReplyJournal):
    broken = TrustsAnyTicket
    caught_by = frozenset(
        {
            "test_whoever_was_overtaken_holds_nothing",
            "test_whoever_abandoned_holds_nothing",
            "test_a_key_is_another_entry_elsewhere",
        }
    )


class ReopensWhatIsCompleted(Touching):
    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        row = self.row(auth, ticket.key)
        if row is not None and row.lease == ticket.lease:
            row.completed = False
        await super().abandon(auth, ticket, maybe_made=maybe_made)


class TestReopensWhatIsCompleted(BrokenReplyJournal):
    broken = ReopensWhatIsCompleted
    caught_by = frozenset({"test_a_completed_entry_is_neither_extended_nor_abandoned"})


class CancelsNothing(InprocReplyJournal):
    async def cancel(self, auth: AuthContext, key: str) -> bool:
        del auth, key
        return False


class TestCancelsNothing(BrokenReplyJournal):
    broken = CancelsNothing
    caught_by = frozenset({"test_a_cancel_reaches_the_holder_and_only_it"})


class CancelsWhateverIsThere(Touching):
    async def cancel(self, auth: AuthContext, key: str) -> bool:
        row = self.row(auth, key)
        if row is not None:
            row.cancel_requested = True
        return row is not None


class TestCancelsWhateverIsThere(BrokenReplyJournal):
    broken = CancelsWhateverIsThere
    caught_by = frozenset({"test_what_nobody_holds_is_not_cancelled"})


class RemembersCancels(Touching):
    """A cancel of one holder reaches the next one."""

    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        before = self.row(auth, key)
        found = await super().open(auth, key, digest, lease=lease, keep=keep)
        after = self.row(auth, key)
        if before is not None and after is not None:
            after.cancel_requested = before.cancel_requested
        return found


class TestRemembersCancels(BrokenReplyJournal):
    broken = RemembersCancels
    caught_by = frozenset({"test_a_cancel_reaches_the_holder_and_only_it"})


ONE = TenantId("tnt_one")


class OneJournalForAll(InprocReplyJournal):
    """Knows namespaces, and no tenants."""

    async def open(self, auth: AuthContext, *arguments: Any, **more: Any) -> Opened:
        return await super().open(replace(auth, tenant=ONE), *arguments, **more)

    def _held(self, auth: AuthContext, ticket: Ticket) -> EntryRow:
        return super()._held(replace(auth, tenant=ONE), ticket)

    async def complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        await super().complete(replace(auth, tenant=ONE), ticket, outcome)

    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        await super().abandon(replace(auth, tenant=ONE), ticket, maybe_made=maybe_made)

    async def cancel(self, auth: AuthContext, key: str) -> bool:
        return await super().cancel(replace(auth, tenant=ONE), key)


class TestOneJournalForAll(BrokenReplyJournal):
    broken = OneJournalForAll
    caught_by = frozenset({"test_a_key_is_another_entry_elsewhere", "test_nobody_cancels_what_is_others"})


class KeepsForEver(InprocReplyJournal):
    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        for row in self._rows.values():
            row.changed_at = self._clock.now()
        return await super().open(auth, key, digest, lease=lease, keep=keep)


class TestKeepsForEver(BrokenReplyJournal):
    broken = KeepsForEver
    caught_by = frozenset(
        {
            "test_an_outcome_is_kept_for_its_time_and_then_forgotten",
            "test_an_entry_that_nobody_came_back_for_is_forgotten",
            "test_an_entry_is_forgotten_as_soon_as_its_last_opener_said",
        }
    )


class ForgetsWhatIsHeld(InprocReplyJournal):
    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        now = self._clock.now()
        for row in self._rows.values():
            if row.changed_at <= now - RETENTION:
                row.lease_until = now
        return await super().open(auth, key, digest, lease=lease, keep=keep)


class TestForgetsWhatIsHeld(BrokenReplyJournal):
    broken = ForgetsWhatIsHeld
    caught_by = frozenset({"test_an_entry_that_is_still_held_is_not_forgotten"})


class KeepsEverythingAsLong(InprocReplyJournal):
    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        check_keep(keep)
        return await super().open(auth, key, digest, lease=lease)


class TestKeepsEverythingAsLong(BrokenReplyJournal):
    broken = KeepsEverythingAsLong
    caught_by = frozenset({"test_an_entry_is_forgotten_as_soon_as_its_last_opener_said"})


class TestForgetsAtReopen(BrokenReplyJournal):
    forgetful = True
    caught_by = frozenset({"test_everything_is_there_for_a_journal_opened_anew"})
