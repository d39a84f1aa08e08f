"""Usage and records go to the server as rows written out in text: whatever text is in them comes back as it was."""

import uuid
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
from adapters.postgres.literals import BETWEEN, literal, literals
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
TEXTS: Final = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30),
    st.text('a\\"\n]["), ', max_size=12),
    st.sampled_from(ODD),
)
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

    async def test_the_server_reads_what_was_written_out_together_and_one_by_one(self, ports: Ports) -> None:
        asked: list[str] = []

        @settings(max_examples=500, database=None)
        @for_any(TEXTS)
        def gathered(text: str) -> None:
            asked.append(text)

        gathered()
        rows = [usage_row(text, number) for number, text in enumerate(asked)]
        one_by_one = ([literal(row) for row in rows], [literals([row]) for row in rows])

        for text in (*map(BETWEEN.join, one_by_one), literals(rows)):
            read = await fetch(
                ports.dsn,
                "SELECT x.* FROM unnest(CAST(string_to_array($1, $2) AS ao_given_usage[])) WITH ORDINALITY AS x "
                "ORDER BY x.ordinality",
                text,
                BETWEEN,
            )
            assert [(str(one["hold"]), *list(one.values())[1:-1]) for one in read] == rows


@settings(database=None)
@for_any(st.lists(TEXTS, min_size=1, max_size=5))
def test_rows_written_out_together_are_what_they_are_one_by_one(texts: list[str]) -> None:
    rows = [usage_row(text, number) for number, text in enumerate(texts)]

    assert [members_of(one) for one in literals(rows).split(BETWEEN)] == [members_of(literal(row)) for row in rows]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        literals([("fine", 1), ("a\ud800b", 2)])


def usage_row(text: str, number: int) -> tuple[str | int, ...]:
    """In the order of `ao_given_usage`."""
    return (
        str(uuid.UUID(int=number)), text, number, text, *range(number, number + 6), text, "", text, text, text, text, text,
        number % 2 == 0,
    )  # fmt: skip


def members_of(row: str) -> list[str]:
    """As the server reads them: between quotes a backslash is before what stands for itself, and two quotes are one."""
    assert (row[0], row[-1]) == ("(", ")")
    found, member, quotes, at = [], "", False, 1
    while at < len(row) - 1:
        sign = row[at]
        if sign == "\\" or (quotes and row[at : at + 2] == '""'):
            member += row[at + 1]
            at += 1
        elif sign == '"':
            quotes = not quotes
        elif sign == "," and not quotes:
            found.append(member)
            member = ""
        else:
            member += sign
        at += 1
    assert not quotes
    # Whether something is so may be written in either case.
    return [*found, member.lower()]
