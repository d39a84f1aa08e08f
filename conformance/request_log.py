"""What every RequestLog must show. Clauses: `ports.request_log`."""

from datetime import timedelta
from typing import Any, Final

import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import RequestLogHarness
from conformance.people import ACME, FOREIGNERS, GLOBEX, Foreigner
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, PermissionDenied
from ports.model import Attempt
from ports.request_log import (
    CONTENT_READ,
    DENIED,
    MAX_PAGE,
    MAX_RECORDS,
    READ,
    READ_CONTENT,
    Counted,
    RequestLog,
    RequestRecord,
    Written,
    new_request_id,
)

SEALED: Final = bytes(range(256))
DAY: Final = timedelta(days=1)


def reader(auth: AuthContext = ACME) -> AuthContext:
    return replace(auth, scopes=frozenset({READ, READ_CONTENT}))


async def record(harness: RequestLogHarness, auth: AuthContext = ACME, **more: Any) -> RequestRecord:
    """A new one, of this moment."""
    at = await harness.now()
    at = at.replace(microsecond=at.microsecond // 1_000 * 1_000)
    given: dict[str, Any] = {"route": "/v1/chat/completions", "model_asked": "fast", "status": 200} | more
    return RequestRecord(
        id=new_request_id(at),
        at=at,
        namespace=auth.namespace,
        principal=auth.principal,
        correlation_id=auth.trace.correlation_id,
        **given,
    )


async def kept(harness: RequestLogHarness, log: RequestLog, auth: AuthContext = ACME) -> RequestRecord:
    """One with its texts, for a day."""
    one = await record(harness, auth)
    one = replace(one, kept_until=one.at + DAY)
    await log.write(auth, [Written(record=one, sealed=SEALED)])
    return one


async def listed(log: RequestLog, auth: AuthContext, *, limit: int) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        page = await log.recent(auth, limit=limit, cursor=cursor)
        pages.append([one.id for one in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return pages


@pytest.mark.anyio
class RequestLogContract(Contract):
    @clause("REQ-1", "REQ-2")
    async def test_a_record_is_found_as_it_was_written(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        attempts = (Attempt(backend="a", status=503, latency_ms=3, reason="upstream_error"), Attempt(
            backend="b", status=200, latency_ms=12, tokens=30, cost_nanousd=7))  # fmt: skip
        full = await record(
            harness, model="m-1", backend="b", stream=True, decision="redacted", reasons=("pii:email", "grüß \U0001f9ad"),
            attempts=attempts, prompt_tokens=10, completion_tokens=2**40, cost_nanousd=2**60, estimated=True, latency_ms=17,
            replayed=True, joined=True, code="upstream_error",
        )  # fmt: skip
        bare = await record(harness)

        await log.write(ACME, [Written(record=full), Written(record=bare)])

        assert await log.find(reader(), full.id) == full
        assert await log.find(reader(), bare.id) == bare

    @clause("REQ-1")
    async def test_writing_again_changes_nothing(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        first = await kept(harness, log)
        other = replace(first, status=500, denied=True)

        await log.write(ACME, [Written(record=other, sealed=b"other")])

        assert await log.find(reader(), first.id) == first
        assert await log.content(reader(), first.id) == SEALED
        assert DENIED not in [action for action, _ in await harness.audit(ACME)]

    @clause("REQ-1")
    @pytest.mark.parametrize("bad", ["id", "sealed without a time", "a time without sealed", "too many"])
    async def test_of_what_can_not_be_written_nothing_is(self, harness: RequestLogHarness, bad: str) -> None:
        log = await harness.open()
        good = Written(record=await record(harness))
        one = await record(harness)
        wrong = {
            "id": [Written(record=replace(one, id="req_1"))],
            "sealed without a time": [Written(record=one, sealed=SEALED)],
            "a time without sealed": [Written(record=replace(one, kept_until=one.at + DAY))],
            "too many": [Written(record=one)] * MAX_RECORDS,
        }[bad]

        with pytest.raises(InvalidArgument):
            await log.write(ACME, [good, *wrong])

        assert (await log.recent(reader(), limit=10)).items == ()

    @clause("REQ-2")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda one: one.name)
    async def test_foreign_records_are_as_good_as_absent(
        self, harness: RequestLogHarness, foreigner: Foreigner
    ) -> None:
        log = await harness.open()
        mine = await kept(harness, log)
        stranger = reader(foreigner.auth)

        for reading in (log.find(stranger, mine.id), log.content(stranger, mine.id), log.find(reader(), "req_nothing")):
            with pytest.raises(NotFound):
                await reading
        assert (await log.recent(stranger, limit=10)).items == ()
        assert await log.counted(stranger, since=mine.at) == ()
        assert await log.content(reader(), mine.id) == SEALED

    @clause("REQ-3")
    async def test_the_newest_come_first_in_pages(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        written: list[str] = []
        for _ in range(5):
            one = await record(harness)
            written.append(one.id)
            await log.write(ACME, [Written(record=one)])
            await harness.advance(timedelta(seconds=1))

        pages = await listed(log, reader(), limit=2)

        newest = written[::-1]
        assert pages == [newest[:2], newest[2:4], newest[4:]]

    @clause("REQ-3")
    async def test_what_comes_while_pages_are_read_disturbs_none(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        old = []
        for _ in range(3):
            old.append(await record(harness))
            await harness.advance(timedelta(seconds=1))
        await log.write(ACME, [Written(record=one) for one in old])
        first = await log.recent(reader(), limit=2)
        await log.write(ACME, [Written(record=await record(harness))])

        second = await log.recent(reader(), limit=2, cursor=first.next_cursor)

        assert [one.id for one in (*first.items, *second.items)] == [one.id for one in old[::-1]]
        assert second.next_cursor is None

    @clause("REQ-3")
    async def test_a_page_has_bounds(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        await log.write(ACME, [Written(record=await record(harness)) for _ in range(MAX_PAGE + 1)])

        page = await log.recent(reader(), limit=10 * MAX_PAGE)

        assert len(page.items) == MAX_PAGE
        for limit, cursor in ((0, None), (1, "nonsense")):
            with pytest.raises(InvalidArgument):
                await log.recent(reader(), limit=limit, cursor=cursor)

    @clause("REQ-4")
    async def test_reading_needs_its_scopes(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        mine = await kept(harness, log)
        of_usage = replace(ACME, scopes=frozenset({READ}))
        of_content = replace(ACME, scopes=frozenset({READ_CONTENT}))

        for reading in (
            log.content(of_usage, mine.id),
            log.find(of_content, mine.id),
            log.recent(of_content, limit=1),
            log.counted(of_content, since=mine.at),
        ):
            with pytest.raises(PermissionDenied):
                await reading
        assert await log.find(of_usage, mine.id) == mine
        assert await log.content(of_content, mine.id) == SEALED

    @clause("REQ-5")
    async def test_what_was_denied_is_in_the_audit_once(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        denied = await record(harness, status=403, code="policy_blocked", denied=True)
        failed = await record(harness, status=502, code="upstream_error")
        batch = [Written(record=denied), Written(record=failed), Written(record=denied)]

        await log.write(ACME, batch)
        await log.write(ACME, batch)

        assert await harness.audit(ACME) == [(DENIED, denied.id)]
        assert await harness.audit(GLOBEX) == []

    @clause("REQ-6")
    async def test_each_reading_of_a_text_is_in_the_audit(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        mine, bare = await kept(harness, log), await record(harness)
        await log.write(ACME, [Written(record=bare)])

        found = [await log.content(reader(), mine.id) for _ in range(2)]
        with pytest.raises(NotFound):
            await log.content(reader(), bare.id)

        assert found == [SEALED, SEALED]
        assert await harness.audit(ACME) == [(CONTENT_READ, mine.id)] * 2

    @clause("REQ-6")
    async def test_a_text_is_there_until_its_time_is_over(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        mine = await kept(harness, log)

        await harness.advance(DAY - timedelta(seconds=30))
        before = await log.content(reader(), mine.id)
        await harness.advance(timedelta(minutes=1))

        assert before == SEALED
        with pytest.raises(NotFound):
            await log.content(reader(), mine.id)
        assert await log.find(reader(), mine.id) == mine

    @clause("REQ-7")
    async def test_requests_are_counted_by_day_and_model(self, harness: RequestLogHarness) -> None:
        log = await harness.open()
        early = await record(harness, model="m-1")
        await log.write(ACME, [Written(record=early)])
        await harness.advance(timedelta(hours=1))
        first = [
            await record(harness, model="m-1"),
            await record(harness, model="m-1"),
            await record(harness, status=403, denied=True),
        ]
        await log.write(ACME, [Written(record=one) for one in first])
        await harness.advance(DAY)
        later = await record(harness, model="m-1")
        await log.write(ACME, [Written(record=later)])

        found = await log.counted(reader(), since=first[0].at)

        day = first[0].at.date()
        assert found == (
            Counted(day=day, model="", requests=1, denied=1),
            Counted(day=day, model="m-1", requests=2, denied=0),
            Counted(day=day + DAY, model="m-1", requests=1, denied=0),
        )

    @clause("REQ-8")
    async def test_everything_is_there_for_a_log_opened_anew(self, harness: RequestLogHarness) -> None:
        mine = await kept(harness, await harness.open())

        log = await harness.reopen()

        assert await log.find(reader(), mine.id) == mine
        assert await log.content(reader(), mine.id) == SEALED
