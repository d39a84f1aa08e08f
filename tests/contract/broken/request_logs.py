"""Broken request logs."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import request_log
from adapters.inproc.request_log import InprocRequestLog
from adapters.inproc.store import Store, store
from conformance.request_log import RequestLogContract
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.messages import Page
from ports.request_log import Counted, RequestLog, RequestRecord, Written, check_records
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocRequestLogHarness, closing


class BrokenRequestLogHarness(InprocRequestLogHarness):
    def __init__(self, broken: type[InprocRequestLog], *, forgetful: bool) -> None:
        super().__init__()
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> RequestLog:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> RequestLog:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenRequestLog(Mutant, RequestLogContract):
    broken: ClassVar[type[InprocRequestLog]] = InprocRequestLog
    forgetful: ClassVar[bool] = False
    replaced: ClassVar[dict[str, Any]] = {}
    """Names of `adapters.inproc.request_log` that are broken instead of the class."""

    @pytest.fixture
    async def harness(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BrokenRequestLogHarness]:
        for name, value in self.replaced.items():
            monkeypatch.setattr(request_log, name, value)
        async with closing(BrokenRequestLogHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenRequestLog):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class WritesOver(InprocRequestLog):
    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        check_records(records)
        for written in records:
            self._table.rows.pop((auth.tenant, written.record.id), None)
        await super().write(auth, records)


class TestWritesOver(BrokenRequestLog):
    broken = WritesOver
    caught_by = frozenset({"test_writing_again_changes_nothing", "test_what_was_denied_is_in_the_audit_once"})


class WritesUpToTheFirstThatIsWrong(InprocRequestLog):
    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        await super().write(auth, records[:1])
        await super().write(auth, records)


class TestWritesUpToTheFirstThatIsWrong(BrokenRequestLog):
    broken = WritesUpToTheFirstThatIsWrong
    caught_by = frozenset({"test_of_what_can_not_be_written_nothing_is"})


class RoundsCosts(InprocRequestLog):
    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        rounded = [
            replace(one, record=replace(one.record, cost_nanousd=int(float(one.record.cost_nanousd) * 1.0000001)))
            for one in records
        ]
        await super().write(auth, rounded)


class TestRoundsCosts(BrokenRequestLog):
    broken = RoundsCosts
    caught_by = frozenset({"test_a_record_is_found_as_it_was_written"})


class ShowsEveryNamespace(InprocRequestLog):
    def _row(self, auth: AuthContext, request: str) -> Written:
        known = self._table.rows.get((auth.tenant, request))
        return super()._row(auth if known is None else replace(auth, namespace=known.record.namespace), request)


class TestShowsEveryNamespace(BrokenRequestLog):
    broken = ShowsEveryNamespace
    caught_by = frozenset({"test_foreign_records_are_as_good_as_absent"})


class SkipsTheFirstOfAPage(InprocRequestLog):
    async def recent(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[RequestRecord]:
        page = await super().recent(auth, limit=limit, cursor=cursor)
        return page if cursor is None else replace(page, items=page.items[1:])


class TestSkipsTheFirstOfAPage(BrokenRequestLog):
    broken = SkipsTheFirstOfAPage
    caught_by = frozenset({"test_the_newest_come_first_in_pages", "test_what_comes_while_pages_are_read_disturbs_none"})


class TestKnowsNoLargestPage(BrokenRequestLog):
    replaced: ClassVar = {"MAX_PAGE": 10_000}
    caught_by = frozenset({"test_a_page_has_bounds"})


class AsksForNoScope(InprocRequestLog):
    async def find(self, auth: AuthContext, request: str) -> RequestRecord:
        return self._row(auth, request).record


class TestAsksForNoScope(BrokenRequestLog):
    broken = AsksForNoScope
    caught_by = frozenset({"test_reading_needs_its_scopes"})


class ReadsWithTheScopeOfUsage(InprocRequestLog):
    async def content(self, auth: AuthContext, request: str) -> bytes:
        return await super().content(replace(auth, scopes=auth.scopes | {"audit:read"}), request)


class TestReadsWithTheScopeOfUsage(BrokenRequestLog):
    broken = ReadsWithTheScopeOfUsage
    caught_by = frozenset({"test_reading_needs_its_scopes"})


class NotesNoDenials(InprocRequestLog):
    def _note(self, auth: AuthContext, action: str, subject: str) -> None:
        if action != "model.deny":
            super()._note(auth, action, subject)


class TestNotesNoDenials(BrokenRequestLog):
    broken = NotesNoDenials
    caught_by = frozenset({"test_what_was_denied_is_in_the_audit_once"})


class NotesNoReading(InprocRequestLog):
    def _note(self, auth: AuthContext, action: str, subject: str) -> None:
        if action == "model.deny":
            super()._note(auth, action, subject)


class TestNotesNoReading(BrokenRequestLog):
    broken = NotesNoReading
    caught_by = frozenset({"test_each_reading_of_a_text_is_in_the_audit"})


class GivesWhatIsOver(InprocRequestLog):
    async def content(self, auth: AuthContext, request: str) -> bytes:
        auth.require("audit:read")
        written = self._row(auth, request)
        if written.sealed is None:
            return await super().content(auth, request)
        self._note(auth, "request.read", request)
        return written.sealed


class TestGivesWhatIsOver(BrokenRequestLog):
    broken = GivesWhatIsOver
    caught_by = frozenset({"test_a_text_is_there_until_its_time_is_over"})


class CountsEverything(InprocRequestLog):
    async def counted(self, auth: AuthContext, *, since: datetime) -> tuple[Counted, ...]:
        return await super().counted(auth, since=since - timedelta(days=9))


class TestCountsEverything(BrokenRequestLog):
    broken = CountsEverything
    caught_by = frozenset({"test_requests_are_counted_by_day_and_model"})


class TakesAnything(InprocRequestLog):
    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        try:
            await super().write(auth, records)
        except InvalidArgument:
            return


class TestTakesAnything(BrokenRequestLog):
    broken = TakesAnything
    caught_by = frozenset({"test_of_what_can_not_be_written_nothing_is"})


class TestForgetsAtReopen(BrokenRequestLog):
    forgetful = True
    caught_by = frozenset({"test_everything_is_there_for_a_log_opened_anew"})
