"""Broken event ports."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc.event import InprocEvents, check_cursor
from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import Store, store
from conformance.event import EventContract
from ports.context import AuthContext
from ports.errors import NotFound
from ports.event import MAX_READ, TERMINAL_EVENTS, Event, EventPort
from ports.ids import RunId
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocEventHarness, closing


class BrokenEventHarness(InprocEventHarness):
    def __init__(self, broken: type[InprocEvents], *, forgetful: bool) -> None:
        super().__init__()
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> EventPort:
        return self._broken(store(self.config.name))

    async def reopen(self) -> EventPort:
        return self._broken(Store("") if self._forgetful else store(self.config.name))

    async def elsewhere(self) -> EventPort:
        return self._broken(Store("elsewhere"))


class BrokenEvents(Mutant, EventContract):
    broken: ClassVar[type[InprocEvents]] = InprocEvents
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenEventHarness]:
        async with closing(BrokenEventHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenEvents):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class EveryRow(Runs):
    def row(self, auth: AuthContext, run_id: RunId) -> RunRow:
        for key, row in self.rows.items():
            if key[2] == run_id:
                return row
        return super().row(auth, run_id)


class ShowsEveryTenant(InprocEvents):
    def __init__(self, storage: Store) -> None:
        super().__init__(storage)
        self._runs = EveryRow(rows=self._runs.rows, keys=self._runs.keys, leases=self._runs.leases)


class TestShowsEveryTenant(BrokenEvents):
    broken = ShowsEveryTenant
    caught_by = frozenset(
        {
            "test_a_foreign_log_is_refused_like_an_absent_one",
            "test_a_foreign_log_is_refused_whatever_the_cursor",
        }
    )


class TellsForeignFromAbsent(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        if any(key[2] == run_id and key[:2] != (auth.tenant, auth.namespace) for key in self._runs.rows):
            raise NotFound(f"run {run_id!r} is not yours")
        return await super().read(auth, run_id, after=after, limit=limit)


class TestTellsForeignFromAbsent(BrokenEvents):
    broken = TellsForeignFromAbsent
    caught_by = frozenset(
        {
            "test_a_foreign_log_is_refused_like_an_absent_one",
        }
    )


class LooksAtTheCursorFirst(InprocEvents):
    """Says of a foreign run how long its log is."""

    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        for key, row in self._runs.rows.items():
            if key[2] == run_id:
                check_cursor(row, after)
        return await super().read(auth, run_id, after=after, limit=limit)


class TestLooksAtTheCursorFirst(BrokenEvents):
    broken = LooksAtTheCursorFirst
    caught_by = frozenset(
        {
            "test_a_foreign_log_is_refused_whatever_the_cursor",
        }
    )


class TestLosesEverythingAtReopen(BrokenEvents):
    forgetful = True
    caught_by = frozenset(
        {
            "test_what_was_read_reads_the_same_for_a_port_opened_anew",
            "test_the_stream_epoch_names_the_storage",
        }
    )


class IncludesTheCursor(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        return await super().read(auth, run_id, after=max(0, after - 1) if after <= 7 else after, limit=limit)


class TestIncludesTheCursor(BrokenEvents):
    broken = IncludesTheCursor
    caught_by = frozenset(
        {
            "test_a_read_starts_after_the_cursor_and_keeps_the_limit",
            "test_a_follower_of_an_ended_run_gets_the_rest_and_ends",
            "test_a_sequence_the_run_does_not_have_is_refused",
            "test_what_a_reader_does_to_an_event_reaches_nobody_else",
        }
    )


class ReadsBackwards(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        return (await super().read(auth, run_id, after=after, limit=limit))[::-1]


class TestReadsBackwards(BrokenEvents):
    broken = ReadsBackwards
    caught_by = frozenset(
        {
            "test_large_events_are_read_whole_in_as_many_reads_as_it_takes",
            "test_a_log_is_read_in_order_without_gaps",
            "test_an_event_tells_what_was_appended_and_by_whose_request",
            "test_a_read_starts_after_the_cursor_and_keeps_the_limit",
            "test_one_read_of_a_long_log_is_bounded",
            "test_a_follower_of_an_ended_run_gets_the_rest_and_ends",
            "test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order",
            "test_what_was_read_reads_the_same_for_a_port_opened_anew",
        }
    )


class ReadsWithoutBound(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        found = await super().read(auth, run_id, after=after, limit=limit)
        return tuple(self._runs.row(auth, run_id).events[after:]) if limit == MAX_READ else found


class TestReadsWithoutBound(BrokenEvents):
    broken = ReadsWithoutBound
    caught_by = frozenset(
        {
            "test_one_read_of_a_long_log_is_bounded",
            "test_what_a_reader_does_to_an_event_reaches_nobody_else",
        }
    )


class TakesAnyCursor(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        last = len(self._runs.row(auth, run_id).events)
        return await super().read(auth, run_id, after=min(max(0, after), last), limit=limit)


class TestTakesAnyCursor(BrokenEvents):
    broken = TakesAnyCursor
    caught_by = frozenset(
        {
            "test_a_sequence_the_run_does_not_have_is_refused",
        }
    )


class ForgetsTheRequest(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        found = await super().read(auth, run_id, after=after, limit=limit)
        return tuple(replace(event, correlation_id="") for event in found)


class TestForgetsTheRequest(BrokenEvents):
    broken = ForgetsTheRequest
    caught_by = frozenset(
        {
            "test_an_event_tells_what_was_appended_and_by_whose_request",
            "test_a_follower_of_an_ended_run_gets_the_rest_and_ends",
            "test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order",
        }
    )


class HandsOutItsOwnRows(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        await super().read(auth, run_id, after=after, limit=limit)
        return tuple(self._runs.row(auth, run_id).events[after : after + min(limit, MAX_READ)])


class TestHandsOutItsOwnRows(BrokenEvents):
    broken = HandsOutItsOwnRows
    caught_by = frozenset(
        {
            "test_what_a_reader_does_to_an_event_reaches_nobody_else",
        }
    )


class RewritesHistory(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        found = await super().read(auth, run_id, after=after, limit=limit)
        last = len(self._runs.row(auth, run_id).events)
        return tuple(replace(event, time=event.time.replace(microsecond=last)) for event in found)


class TestRewritesHistory(BrokenEvents):
    broken = RewritesHistory
    caught_by = frozenset(
        {
            "test_a_follower_of_an_ended_run_gets_the_rest_and_ends",
            "test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order",
            "test_what_was_read_reads_the_same_for_a_port_opened_anew",
        }
    )


class Duplicates(InprocEvents):
    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        async for event in super().follow(auth, run_id, after=after):
            yield event
            if event.sequence == 4:
                yield event


class TestDuplicates(BrokenEvents):
    broken = Duplicates
    caught_by = frozenset(
        {
            "test_a_follower_of_an_ended_run_gets_the_rest_and_ends",
            "test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order",
            "test_a_follower_sees_each_event_soon_after_it_is_appended",
            "test_a_follower_that_does_not_read_holds_nothing_up_and_loses_nothing",
        }
    )


class FollowsOnlyWhatIsThere(InprocEvents):
    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        for event in await self.read(auth, run_id, after=after):
            yield event


class TestFollowsOnlyWhatIsThere(BrokenEvents):
    broken = FollowsOnlyWhatIsThere
    caught_by = frozenset(
        {
            "test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order",
            "test_a_follower_sees_each_event_soon_after_it_is_appended",
            "test_one_follower_stopping_leaves_the_others_alone",
            "test_a_follower_that_does_not_read_holds_nothing_up_and_loses_nothing",
        }
    )


class FollowsOnlyWhatIsNew(InprocEvents):
    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        row = self._runs.row(auth, run_id)
        check_cursor(row, after)
        ended = row.events[-1].type in TERMINAL_EVENTS
        async for event in super().follow(auth, run_id, after=after if ended else len(row.events)):
            yield event


class TestFollowsOnlyWhatIsNew(BrokenEvents):
    broken = FollowsOnlyWhatIsNew
    caught_by = frozenset(
        {
            "test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order",
            "test_a_follower_sees_each_event_soon_after_it_is_appended",
            "test_one_follower_stopping_leaves_the_others_alone",
            "test_a_follower_that_does_not_read_holds_nothing_up_and_loses_nothing",
        }
    )


class NeverEnds(InprocEvents):
    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        async for event in super().follow(auth, run_id, after=after):
            yield event
        await self._runs.row(auth, run_id).changed.wait()


class TestNeverEnds(BrokenEvents):
    broken = NeverEnds
    caught_by = frozenset(
        {
            "test_a_follower_of_an_ended_run_gets_the_rest_and_ends",
            "test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order",
            "test_one_follower_stopping_leaves_the_others_alone",
            "test_following_from_the_terminal_event_yields_nothing_and_ends",
            "test_a_follower_that_does_not_read_holds_nothing_up_and_loses_nothing",
        }
    )


class WaitsForAnEventAfterTheEnd(InprocEvents):
    """Looks for the terminal event among what it yields only."""

    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        row = self._runs.row(auth, run_id)
        if after == len(row.events):
            await row.changed.wait()
        async for event in super().follow(auth, run_id, after=after):
            yield event


class TestWaitsForAnEventAfterTheEnd(BrokenEvents):
    broken = WaitsForAnEventAfterTheEnd
    caught_by = frozenset(
        {
            "test_following_from_the_terminal_event_yields_nothing_and_ends",
        }
    )


class DropsWhatASlowReaderMissed(InprocEvents):
    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        async for event in super().follow(auth, run_id, after=after):
            if len(self._runs.row(auth, run_id).events) - event.sequence < 1_202:
                yield event


class TestDropsWhatASlowReaderMissed(BrokenEvents):
    broken = DropsWhatASlowReaderMissed
    caught_by = frozenset(
        {
            "test_a_follower_that_does_not_read_holds_nothing_up_and_loses_nothing",
        }
    )


class NamesEveryStorageTheSame(InprocEvents):
    @property
    def stream_epoch(self) -> str:
        return "same"


class TestNamesEveryStorageTheSame(BrokenEvents):
    broken = NamesEveryStorageTheSame
    caught_by = frozenset(
        {
            "test_the_stream_epoch_names_the_storage",
        }
    )


class NamesEveryPortAnew(InprocEvents):
    @property
    def stream_epoch(self) -> str:
        return str(id(self))


class TestNamesEveryPortAnew(BrokenEvents):
    broken = NamesEveryPortAnew
    caught_by = frozenset(
        {
            "test_the_stream_epoch_names_the_storage",
        }
    )


class CutsWhatIsLarge(InprocEvents):
    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        found = await super().read(auth, run_id, after=after, limit=limit)
        return tuple(
            replace(
                event,
                data={key: value[:65_535] if isinstance(value, str) else value for key, value in event.data.items()},
            )
            for event in found
        )


class TestCutsWhatIsLarge(BrokenEvents):
    broken = CutsWhatIsLarge
    caught_by = frozenset(
        {
            "test_large_events_are_read_whole_in_as_many_reads_as_it_takes",
        }
    )
