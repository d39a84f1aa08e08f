"""Whatever traffic there was: usage events sum to the budgets, and are what the backends say they have done.

Random requests, streamed and whole, over backends that fail before and in the middle of their answers, report usage or
don't, bill what is cut off or stop; with clients that leave, budgets that end streams, and chunks leased or not.
"""

import asyncio
import uuid
from collections import Counter
from contextlib import aclosing
from typing import Any, Final

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import store
from adapters.system_clock import SystemClock
from conformance.people import PLATFORM
from ports.budget import Amount, Budget, UsageEvent
from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.messages import Json
from stack_b.backends.protocol import OUTCOME_UNKNOWN, Price
from stack_b.limits import Limits
from tests.support.stack_b import CALLERS, StackB, stack_b
from tests.support.writing_backend import PROMPT_TOKENS, Writing

SLICE: Final = 60
LIMIT: Final = 4_000
MONEY: Final = 40_000
PRICE: Final = Price(prompt=10**6, completion=3 * 10**6)
FAILURES: Final[dict[str, AgentOSError]] = {
    "not sent": Unavailable("down", code="upstream_error", details={"sent": False}),
    "lost": Unavailable("lost", code="upstream_error", details=OUTCOME_UNKNOWN),
    "refused": InvalidArgument("refused", code="invalid_request", details={"upstream_status": 400}),
}


class Behaviour(Struct, frozen=True, kw_only=True):
    tokens: int
    stops: bool
    reports: bool
    fails: str | None
    fails_after: int


class Ask(Struct, frozen=True, kw_only=True):
    stream: bool
    max_tokens: int
    choices: int
    leaves_after: int | None
    first: Behaviour
    second: Behaviour


BEHAVIOURS: Final = st.builds(
    Behaviour,
    tokens=st.integers(0, 150),
    stops=st.booleans(),
    reports=st.booleans(),
    fails=st.sampled_from([None, None, *FAILURES]),
    fails_after=st.integers(0, 20),
)
ASKS: Final = st.builds(
    Ask,
    stream=st.booleans(),
    max_tokens=st.integers(1, 400),
    choices=st.sampled_from([1, 1, 2]),
    leaves_after=st.none() | st.integers(0, 300),
    first=BEHAVIOURS,
    second=BEHAVIOURS,
)


class Reporting(Writing):
    """Does what each request's behaviour says, and keeps apart what it told of its usage."""

    def __init__(self, name: str, place: int, asks: list[Ask]) -> None:
        super().__init__(name=name, price=PRICE)
        self._place = place
        self._asks = asks
        self.stops_billing = all((ask.first, ask.second)[place].stops for ask in asks)
        self.told_usage: Counter[int] = Counter()
        """By request: the sum of what was reported and read."""

    def _for(self, body: dict[str, Json]) -> tuple[int, Writing]:
        number = int(body["messages"][0]["content"].removeprefix("request "))
        ask = self._asks[number]
        how = ask.first if self._place == 0 else ask.second
        failure = FAILURES[how.fails] if how.fails else None
        return number, Writing(
            tokens=how.tokens, reports=how.reports, failure=failure, fails_after=how.fails_after, between=a_moment
        )

    async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        number, writing = self._for(body)
        answer = await writing.chat(model, body, max_tokens)
        self.written += writing.written
        if "usage" in answer:
            self.told_usage[number] += answer["usage"]["total_tokens"]
        return answer

    async def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> Any:
        number, writing = self._for(body)
        try:
            async with aclosing(writing.stream(model, body, max_tokens)) as chunks:
                async for chunk in chunks:
                    if "usage" in chunk:
                        self.told_usage[number] += chunk["usage"]["total_tokens"]
                    yield chunk
        finally:
            self.written += writing.written
            self.closed += writing.closed


async def a_moment(_number: int) -> None:
    """In which others have their turn."""
    await asyncio.sleep(0)


async def ask(node: StackB, number: int, wanted: Ask) -> None:
    body: dict[str, Any] = {
        "model": "m-1",
        "messages": [{"role": "user", "content": f"request {number}"}],
        "max_tokens": wanted.max_tokens,
        "stream": wanted.stream,
        "n": wanted.choices,
    }
    asking = asyncio.create_task(node.post("/v1/chat/completions", body, **{"x-correlation-id": f"request-{number}"}))
    if wanted.leaves_after is not None:
        for _ in range(wanted.leaves_after):
            await asyncio.sleep(0)
        asking.cancel()
    await asyncio.wait({asking})
    if not asking.cancelled():
        assert asking.result().status_code < 500 or b"upstream_error" in asking.result().content


async def traffic(asks: list[Ask], *, in_chunks: bool) -> tuple[InprocBudget, list[Reporting]]:
    ledger = InprocBudget(store(uuid.uuid4().hex), SystemClock())
    await ledger.set_budget(PLATFORM, CALLERS["acme"].tenant, Budget(id="money", unit="nanousd", limit=MONEY))
    await ledger.set_budget(PLATFORM, CALLERS["acme"].tenant, Budget(id="each-key", limit=LIMIT, scope="key"))
    backends = [Reporting("first", 0, asks), Reporting("second", 1, asks)]
    limits = Limits(output_slice_tokens=SLICE)
    with anyio.fail_after(20):
        async with (
            stack_b(*backends, limit=LIMIT, limits=limits, budget=ledger, budget_in_chunks=in_chunks) as node,
            anyio.create_task_group() as group,
        ):
            for number, wanted in enumerate(asks):
                group.start_soon(ask, node, number, wanted)
    return ledger, backends


@given(asks=st.lists(ASKS, min_size=1, max_size=12), in_chunks=st.booleans())
@settings(max_examples=25, deadline=None)
def test_usage_events_sum_to_the_budgets_and_to_what_the_backends_reported(asks: list[Ask], in_chunks: bool) -> None:
    async def act() -> None:
        ledger, backends = await traffic(asks, in_chunks=in_chunks)
        auth = CALLERS["acme"]
        events: list[UsageEvent] = [event for _, event in ledger._books.events.values()]
        total = Amount()
        for event in events:
            total = total.plus(event.amount)

        # To the budgets: all of them, to the last token, and within their limits.
        assert await ledger.deviations(auth) == ()
        for (_, key, _), window in ledger._books.windows.items():
            assert window.settled == total.of(window.unit), key
            assert window.held == 0
            assert window.settled <= (MONEY if window.unit == "nanousd" else LIMIT)
        # To the backends: what they reported is what was booked, where they did; what they wrote is paid in any case.
        for backend in backends:
            booked: Counter[int] = Counter()
            for event in events:
                if event.backend == backend.name and not event.estimated:
                    booked[int(event.correlation_id.removeprefix("request-"))] += event.amount.tokens
            assert {number: count for number, count in booked.items() if count} == {
                number: count for number, count in backend.told_usage.items() if count
            }
            paid = sum(event.amount.tokens for event in events if event.backend == backend.name)
            assert paid >= backend.written
        # And each at the price of its kind.
        for event in events:
            prompt = event.fresh_tokens + event.cache_read_tokens + event.cache_write_tokens
            assert event.cost_nanousd == PRICE.cost_nanousd(prompt, event.output_tokens + event.reasoning_tokens)

    asyncio.run(act())


def test_the_traffic_meets_what_it_is_to_meet() -> None:
    """A property over traffic in which nothing happens would prove nothing."""
    calm = Behaviour(tokens=20, stops=True, reports=True, fails=None, fails_after=0)
    broken = Behaviour(tokens=20, stops=True, reports=True, fails="lost", fails_after=5)
    endless = Behaviour(tokens=2_000, stops=True, reports=False, fails=None, fails_after=0)
    asks = [
        Ask(stream=True, max_tokens=400, choices=1, leaves_after=None, first=calm, second=calm),
        Ask(stream=True, max_tokens=400, choices=1, leaves_after=None, first=broken, second=calm),
        Ask(stream=False, max_tokens=40, choices=1, leaves_after=None, first=broken, second=calm),
        Ask(stream=True, max_tokens=9_000, choices=2, leaves_after=None, first=endless, second=calm),
    ]

    ledger, [first, second] = asyncio.run(traffic(asks, in_chunks=False))

    events = [event for _, event in ledger._books.events.values()]
    assert {event.estimated for event in events} == {True, False}
    assert {event.attempt for event in events} == {1, 2}
    assert first.closed > 0, "a stream was ended by its budget"
    assert second.told_usage == {2: PROMPT_TOKENS + 20}
