"""Usage and records go to the server as rows written out in text: whatever text is in them comes back as it was."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given as for_any
from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from adapters.postgres import budget, request_log
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.literals import members, quoted
from adapters.system_clock import SystemClock
from conformance.people import ACME
from ports.adapter import Given
from ports.budget import Amount, Booking, BudgetLedger, UsageEvent
from ports.budget_rules import tokens_per_day
from ports.errors import InvalidArgument
from ports.model import Attempt
from ports.request_log import READ, RequestLog, RequestRecord, Written, new_request_id
from tests.support.postgres import borrow, fetch, give_back

ODD: Final = (
    "", " ", '"', '""', "\\", "\\\\", '\\"', ",", "(", ")", "(a,b)", "{a}", "NULL", "null", "t", "\n", "\r\n", "\t", "\x1f",
    "'; DROP TABLE usage_events; --", "$1", ":name", "\U0001f600", "\u202e", "\ufeff", "a" * 10_000,
)  # fmt: skip
READER: Final = replace(ACME, scopes=ACME.scopes | {READ})
UNSTORABLE: Final = ("a\x00b", "a\ud800b")
NUMBERS: Final = (0, 1, 2**31, 2**53 + 1)


class Ports:
    def __init__(self, ledger: BudgetLedger, log: RequestLog, dsn: str) -> None:
        self.ledger, self.log, self.dsn = ledger, log, dsn

    async def book(self, events: tuple[UsageEvent, ...]) -> None:
        hold = await self.ledger.hold(ACME, Amount(tokens=9), on=(tokens_per_day(10**12),), lease=timedelta(minutes=1))
        await self.ledger.book(ACME, [Booking(hold=hold.id, events=events, end=True)])


@pytest.fixture
async def ports() -> AsyncIterator[Ports]:
    clone = await borrow()
    config, given = PostgresConfig(dsn=clone.app), Given(clock=SystemClock())
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(budget.SPEC.open(config, given))
        log = await stack.enter_async_context(request_log.SPEC.open(config, given))
        yield Ports(ledger, log, clone.app)
    await give_back(clone)


def event(text: str, number: int = 1) -> UsageEvent:
    return UsageEvent(
        request=f"req {text}", attempt=2, kind="call", correlation_id=text, principal=text, agent=text, session=text,
        model=text, backend=text, fresh_tokens=number, cache_read_tokens=number + 1, cache_write_tokens=number + 2,
        output_tokens=number + 3, reasoning_tokens=number + 4, cost_nanousd=number + 5, price=text, estimated=True,
    )  # fmt: skip


def record(text: str, number: int = 1) -> RequestRecord:
    now = datetime.now(UTC)
    attempt = Attempt(backend=text, status=503, latency_ms=number, tokens=number, cost_nanousd=number, reason=text)
    return RequestRecord(
        id=new_request_id(now), at=now, namespace=ACME.namespace, principal=text, correlation_id=text, route=text,
        stream=True, model_asked=text, model=text, backend=text, status=200, code=text, denied=False, decision=text,
        reasons=(text, text), attempts=(attempt, attempt), prompt_tokens=number, completion_tokens=number + 1,
        cost_nanousd=number + 2, estimated=True, latency_ms=number + 3, replayed=True, joined=False,
    )  # fmt: skip


@pytest.mark.anyio
class TestGivenRows:
    async def test_usage_comes_back_as_it_was_booked(self, ports: Ports) -> None:
        given = [event(text, number) for text, number in zip(ODD, NUMBERS * len(ODD), strict=False)]

        await ports.book(tuple(given))

        for one in given:
            assert await ports.ledger.usage(ACME, one.request) == (one,)
        assert await ports.ledger.deviations(ACME) == ()

    async def test_records_come_back_as_they_were_written(self, ports: Ports) -> None:
        given = [record(text, number) for text, number in zip(ODD, NUMBERS * len(ODD), strict=False)]
        given.append(replace(record("plain"), reasons=(), attempts=(), stream=False, estimated=False, joined=True))
        # Kept until no whole second, of a request at a whole one.
        whole = datetime(2026, 3, 1, tzinfo=UTC)
        kept = replace(record("kept"), id=new_request_id(whole), at=whole, kept_until=datetime.now(UTC))

        await ports.log.write(ACME, [*(Written(record=one) for one in given), Written(record=kept, sealed=b"sealed")])

        for one in (*given, kept):
            assert await ports.log.find(READER, one.id) == one

    @pytest.mark.parametrize("text", UNSTORABLE, ids=["nul", "surrogate"])
    async def test_what_can_not_be_stored_is_refused_whole(self, ports: Ports, text: str) -> None:
        with pytest.raises(InvalidArgument):
            await ports.book((event("fine"), event(text)))
        with pytest.raises(InvalidArgument):
            await ports.log.write(ACME, [Written(record=record("fine")), Written(record=record(text))])

        assert await ports.ledger.usage(ACME, event("fine").request) == ()
        assert await ports.ledger.deviations(ACME) == ()

    async def test_the_server_reads_what_was_quoted(self, ports: Ports) -> None:
        asked: list[str] = []

        @settings(max_examples=500, database=None)
        @for_any(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30))
        def gathered(text: str) -> None:
            asked.append(text)

        gathered()
        rows = await fetch(
            ports.dsn,
            "SELECT r.reason FROM unnest(CAST($1::text[] AS ao_given_usage[])) WITH ORDINALITY AS x, "
            "LATERAL (SELECT x.price AS reason) r ORDER BY x.ordinality",
            [f"({',' * 16}{quoted(text)},)" for text in asked],
        )

        assert [row["reason"] for row in rows] == asked


def test_members_are_quoted_where_they_are_texts() -> None:
    assert members("a", True, 5, 'b"c\\', "") == '"a",True,5,"b""c\\\\",""'
