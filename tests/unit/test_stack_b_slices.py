"""Slices of an answer: held ahead of need while a stream is written, and never written beyond."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import anyio
import pytest

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import store
from adapters.system_clock import SystemClock
from conformance.people import ACME, PLATFORM
from ports.budget import NOTHING, Account, Amount, Budget, Hold
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import HoldId
from stack_b.backends.billing import StopsBilling
from stack_b.backends.catalog import Candidate
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard, Price
from stack_b.budget.balances import Balances
from stack_b.budget.meter import Meter
from stack_b.budget.slices import Slices, cost_of, cuttable, output_within
from stack_b.limits import Limits
from tests.support.reserved import reserved
from tests.support.stack_b import CALLERS, StackB, stack_b
from tests.support.writing_backend import Writing

SLICE: Final = 100
LIMITS: Final = Limits(output_slice_tokens=SLICE)
LEASE: Final = timedelta(seconds=30)
MESSAGES: Final = [{"role": "user", "content": "hello"}]
PROMPT: Final = len(b'{"messages":[{"role":"user","content":"hello"}]}')
"""What is held for the prompt."""


class Watched(InprocBudget):
    """The in-process ledger, with its calls counted, and the most that was ever settled and held."""

    def __init__(self, *, away: bool = False) -> None:
        super().__init__(store(uuid.uuid4().hex), SystemClock())
        self.calls: Counter[str] = Counter()
        self.held: list[int] = []
        self.away = away
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        self.calls["hold"] += 1
        hold = await super().hold(auth, amount, on=on, lease=lease, spare=spare)
        self.held.append(hold.amount)
        return hold

    async def extend(
        self, auth: AuthContext, hold: HoldId, more: Amount, *, on: Sequence[Account], lease: timedelta
    ) -> Hold:
        self.calls["extend"] += 1
        self.waiting.set()
        await self.gate.wait()
        if self.away:
            raise Unavailable("the ledger is away")
        grown = await super().extend(auth, hold, more, on=on, lease=lease)
        self.held.append(grown.amount)
        return grown


def stream_of(answer: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def streamed(node: StackB, **members: Any) -> list[dict[str, Any]]:
    return stream_of(await node.chat(model="m-1", stream=True, **members))


@pytest.mark.anyio
class TestOfTheGateway:
    async def test_a_stream_is_not_refused_while_prompt_and_slice_fit(self) -> None:
        backend = Writing(stops_billing=True)
        async with stack_b(backend, limit=PROMPT + SLICE, limits=LIMITS) as node:
            answer = await node.chat(model="m-1", stream=True, max_tokens=100_000)

        assert answer.status_code == 200
        assert backend.told == [100_000]
        assert "limited_by" not in stream_of(answer)[-1]["usage"]

    async def test_one_token_less_is_too_little_and_says_what_fits(self) -> None:
        backend = Writing(stops_billing=True)
        async with stack_b(backend, limit=PROMPT + SLICE - 1, limits=LIMITS) as node:
            refused = await node.chat(model="m-1", stream=True, max_tokens=100_000)
            fits = refused.json()["error"]["details"]["max_tokens_that_fits"]
            answer = await node.chat(model="m-1", stream=True, max_tokens=fits)

        assert (refused.status_code, refused.json()["error"]["code"], fits) == (
            400,
            "request_exceeds_budget",
            SLICE - 1,
        )
        assert answer.status_code == 200

    @pytest.mark.parametrize(("stops", "stream"), [(False, True), (True, False), (False, False)])
    async def test_all_is_held_where_cancelling_stops_no_bill_and_for_whole_answers(
        self, stops: bool, stream: bool
    ) -> None:
        ledger = Watched()
        async with stack_b(Writing(stops_billing=stops), limits=LIMITS, budget=ledger) as node:
            await node.chat(model="m-1", stream=stream, max_tokens=1_000)

        assert ledger.held == [PROMPT + 1_000]

    async def test_what_is_held_grows_ahead_of_what_is_written(self) -> None:
        ledger = Watched()
        backend = Writing(stops_billing=True, tokens=300, bytes_each=1)
        ahead: list[int] = []

        async def look(number: int) -> None:
            held = (await ledger.balance(CALLERS["acme"], limit=1_000_000)).held
            ahead.append(held - PROMPT - number)

        backend.between = look
        async with stack_b(backend, limits=LIMITS, budget=ledger) as node:
            chunks = await streamed(node, max_tokens=2_000)
            balance = await node.balance()

        assert len(text_of(chunks)) == 300
        assert min(ahead) > 0
        assert len(ledger.held) > 1
        assert max(ledger.held) < PROMPT + 2_000
        assert (balance.settled, balance.held) == (10 + 300, 0)
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"

    async def test_a_refused_extension_ends_the_stream_within_the_limit(self) -> None:
        backend = Writing(stops_billing=True, tokens=5_000)
        async with stack_b(backend, limit=PROMPT + 3 * SLICE, limits=LIMITS) as node:
            chunks = await streamed(node, max_tokens=100_000)
            balance = await node.balance()

        assert (chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["usage"]["limited_by"]) == (
            "length",
            "tokens_per_day",
        )
        assert chunks[-1]["usage"]["estimated"] is True
        assert 2 * SLICE <= len(text_of(chunks)) <= 3 * SLICE
        assert (backend.closed, backend.written) == (1, len(text_of(chunks)) // 4)
        assert backend.written <= balance.settled <= balance.limit
        assert balance.held == 0

    @pytest.mark.parametrize(
        ("path", "asked", "ending"),
        [
            ("/v1/messages", {"max_tokens": 90_000, "messages": MESSAGES}, '"stop_reason":"max_tokens"'),
            ("/v1/responses", {"max_output_tokens": 90_000, "input": "hello"}, '"reason":"max_output_tokens"'),
        ],
    )
    async def test_every_surface_says_that_the_budget_ended_it(
        self, path: str, asked: dict[str, Any], ending: str
    ) -> None:
        backend = Writing(stops_billing=True, tokens=5_000)
        async with stack_b(backend, limit=PROMPT + 2 * SLICE, limits=LIMITS) as node:
            answer = await node.post(path, {"model": "m-1", "stream": True, **asked})

        assert answer.status_code == 200
        assert ending in answer.text
        assert '"limited_by":"tokens_per_day"' in answer.text

    async def test_a_budget_of_money_ends_a_stream_too(self) -> None:
        ledger = Watched()
        price = Price(prompt=10**6, completion=10 * 10**6)
        most = price.most_nanousd(PROMPT, 2 * SLICE)
        await ledger.set_budget(PLATFORM, CALLERS["acme"].tenant, Budget(id="money", unit="nanousd", limit=most))
        backend = Writing(stops_billing=True, tokens=5_000, price=price)
        async with stack_b(backend, limits=LIMITS, budget=ledger) as node:
            chunks = await streamed(node, max_tokens=100_000)

        assert chunks[-1]["usage"]["limited_by"] == "money"
        assert chunks[-1]["usage"]["cost_nanousd"] <= most
        assert len(text_of(chunks)) <= 2 * SLICE
        assert await ledger.deviations(CALLERS["acme"]) == ()

    async def test_each_of_several_choices_has_a_slice(self) -> None:
        ledger = Watched()
        backend = Writing(stops_billing=True, tokens=500)
        limit = len(b'{"messages":[{"role":"user","content":"hello"}]}') + 3 * SLICE
        async with stack_b(backend, limit=limit, limits=LIMITS, budget=ledger) as node:
            chunks = await streamed(node, max_tokens=10_000, n=3)

        assert ledger.held == [PROMPT + 3 * SLICE]
        ends = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
        assert [(end["index"], end["finish_reason"]) for end in ends] == [(0, "length"), (1, "length"), (2, "length")]

    async def test_half_a_tool_call_is_no_call(self) -> None:
        backend = Calling(stops_billing=True, tokens=5_000)
        async with stack_b(backend, limit=PROMPT + SLICE, limits=LIMITS) as node:
            chunks = await streamed(node, max_tokens=10_000)

        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert not any("tool_calls" in choice["delta"] for chunk in chunks for choice in chunk["choices"])

    @pytest.mark.parametrize(("limit", "told"), [(1_000_000, 10_000), (PROMPT + 3 * SLICE, SLICE)])
    async def test_the_next_backend_is_told_what_is_held_where_its_bill_can_not_be_stopped(
        self, limit: int, told: int
    ) -> None:
        failing = Writing(name="one", stops_billing=True, fails_after=0, failure=Unavailable("down"))
        second = Writing(name="two", tokens=5_000)
        async with stack_b(failing, second, limit=limit, limits=LIMITS) as node:
            chunks = await streamed(node, max_tokens=10_000)

        assert (failing.told, second.told) == ([10_000], [told])
        assert ("limited_by" in chunks[-1]["usage"]) == (told < 10_000)

    async def test_what_lost_attempts_have_cost_is_held_beside_the_next(self) -> None:
        lost = Unavailable("lost", code="upstream_error", details={"outcome": "unknown"})
        backends = [Writing(name=f"b-{number}", failure=lost) for number in range(8)]
        text = "x" * 4_000
        bound = PROMPT - 5 + len(text)
        limit = bound + 100 + 2_000
        async with stack_b(*backends, Writing(name="last", tokens=100), limit=limit) as node:
            answer = await node.chat(text, model="m-1", max_tokens=100)
            balance = await node.balance()

        assert answer.json()["error"]["code"] == "upstream_error"
        assert balance.settled <= limit
        assert sum(len(backend.told) for backend in backends) == 2

    async def test_a_client_that_leaves_pays_for_what_was_written(self) -> None:
        ledger = Watched()
        backend = Writing(stops_billing=True, tokens=5_000)
        here = anyio.Event()

        async def stop(number: int) -> None:
            if number == 200:
                here.set()
                await asyncio.Event().wait()

        backend.between = stop
        async with stack_b(backend, limits=LIMITS, budget=ledger) as node:
            asking = asyncio.create_task(node.chat(model="m-1", stream=True, max_tokens=10_000))
            with anyio.fail_after(5):
                await here.wait()
            asking.cancel()
            await asyncio.wait({asking})
            balance = await node.balance()

        assert balance.held == 0
        assert backend.written <= balance.settled <= PROMPT + 200 * 4


class Calling(Writing):
    """Writes the arguments of one call."""

    async def stream(self, _model: str, _body: dict[str, Any], _max_tokens: int) -> Any:
        for number in range(self.tokens):
            function = {"name": "f"} if number == 0 else {"arguments": "xxxx"}
            call = {"index": 0, "id": "c", "type": "function", "function": function}
            choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}
            yield {"id": "chatcmpl-up", "choices": [choice]}


@pytest.mark.anyio
class TestSlices:
    @pytest.fixture
    def ledger(self) -> Watched:
        return Watched()

    async def test_a_short_answer_makes_no_more_calls(self, ledger: Watched) -> None:
        meter = Meter(ledger, SystemClock(), Balances(ledger, SystemClock()), in_chunks=True)

        for _ in range(20):
            async with reserved(meter, ACME, 20 + SLICE, limit=10**6, lease=LEASE) as spending:
                slices = slices_of(spending)
                await slices.begin(10**4, in_slices=True, spent=NOTHING, price=None)
                assert all(slices.covers(size, 0) for size in range(0, SLICE // 2 - 10, 10))
        await meter.drain()

        assert (ledger.calls["hold"], ledger.calls["extend"]) == (1, 0)

    async def test_a_long_one_grows_in_the_chunk_of_its_process(self, ledger: Watched) -> None:
        meter = Meter(ledger, SystemClock(), Balances(ledger, SystemClock()), in_chunks=True)

        async with reserved(meter, ACME, 20 + SLICE, limit=10**7, lease=LEASE) as spending:
            slices = slices_of(spending)
            await slices.begin(10**4, in_slices=True, spent=NOTHING, price=None)
            for size in range(0, 2_000, 10):
                assert slices.covers(size, 0) or await slices.covered(size, 0)
            assert spending.amount.tokens > 20 + 1_900
        assert spending.chunk.out == NOTHING
        await meter.drain()

        assert (ledger.calls["hold"], ledger.calls["extend"]) == (1, 0)
        balance = await ledger.balance(ACME, limit=10**7)
        assert (balance.settled, balance.held) == (0, 0)

    async def test_it_goes_on_without_the_ledger_until_what_is_held_is_used_up(self, ledger: Watched) -> None:
        meter = Meter(ledger, SystemClock(), Balances(ledger, SystemClock()))
        ledger.away = True

        async with reserved(meter, ACME, 20 + SLICE, limit=10**6, lease=LEASE) as spending:
            slices = slices_of(spending)
            await slices.begin(10**4, in_slices=True, spent=NOTHING, price=None)
            for size in range(3, 60, 3):
                assert slices.covers(size, 0) or await slices.covered(size, 0)
                await anyio.wait_all_tasks_blocked()
            with pytest.raises(Unavailable):
                await slices.covered(SLICE, 0)

        balance = await ledger.balance(ACME, limit=10**6)
        assert (balance.settled, balance.held) == (0, 0)

    async def test_nothing_stays_held_of_an_extension_that_nobody_waits_for(self, ledger: Watched) -> None:
        meter = Meter(ledger, SystemClock(), Balances(ledger, SystemClock()))
        ledger.gate.clear()

        async with (
            reserved(meter, ACME, 20 + SLICE, limit=10**6, lease=LEASE) as spending,
            slices_of(spending) as slices,
        ):
            await slices.begin(10**4, in_slices=True, spent=NOTHING, price=None)
            assert await slices.covered(SLICE // 2, 0)
            with anyio.fail_after(5):
                await ledger.waiting.wait()
            asyncio.get_running_loop().call_soon(ledger.gate.set)
        await meter.drain()

        balance = await ledger.balance(ACME, limit=10**6)
        assert (balance.settled, balance.held) == (0, 0)
        assert await ledger.deviations(ACME) == ()

    async def test_a_large_chunk_is_held_at_once(self, ledger: Watched) -> None:
        meter = Meter(ledger, SystemClock(), Balances(ledger, SystemClock()))

        async with reserved(meter, ACME, 20 + SLICE, limit=10**6, lease=LEASE) as spending:
            slices = slices_of(spending)
            await slices.begin(10**4, in_slices=True, spent=NOTHING, price=None)

            assert await slices.covered(9 * SLICE, 0)
            assert spending.amount.tokens >= 20 + 9 * SLICE + SLICE // 2

        assert ledger.calls["extend"] == 1

    async def test_what_the_backend_itself_counts_goes_before_bytes(self, ledger: Watched) -> None:
        meter = Meter(ledger, SystemClock(), Balances(ledger, SystemClock()))

        async with reserved(meter, ACME, 20 + SLICE, limit=20 + SLICE, lease=LEASE) as spending:
            slices = slices_of(spending)
            await slices.begin(10**4, in_slices=True, spent=NOTHING, price=None)

            assert await slices.covered(3, SLICE - 1)
            assert not await slices.covered(3, SLICE)
            assert slices.limited_by == "tokens_per_day"


def slices_of(spending: Any) -> Slices:
    return Slices(spending, prompt_bound=20, choices=1, slice_tokens=SLICE, monotonic=asyncio.get_running_loop().time)


@pytest.mark.parametrize(
    ("stops", "hidden", "in_slices"),
    [
        (True, None, True), (True, True, False), ("streams", None, False), ("streams", False, True), (False, False, False),
    ],
)  # fmt: skip
def test_a_bill_that_no_stream_shows_is_held_in_full(stops: StopsBilling, hidden: bool | None, in_slices: bool) -> None:
    backend = OpenAiCompatible(name="b", base_url="https://models.example/v1", cancel_stops_billing=stops)
    card = ModelCard(id="m", upstream="m", hidden_reasoning=hidden)

    assert cuttable(Candidate(backend, card)) is in_slices


@pytest.mark.parametrize("price", [None, Price(), Price(prompt=3, completion=7), Price(prompt=10**6, reasoning=10**7)])
@pytest.mark.parametrize("room", [Amount(tokens=50), Amount(tokens=400, nanousd=900), Amount(tokens=90, nanousd=91)])
def test_what_fits_into_a_room_is_the_most_that_does(price: Price | None, room: Amount) -> None:
    most = output_within(room, price, 40)

    asked = Amount(tokens=room.tokens, nanousd=room.nanousd if price is not None else 0)
    assert most < 0 or asked.holds(cost_of(price, 40, most))
    assert not asked.holds(cost_of(price, 40, most + 1))
