"""What a request may cost, and settling it exactly once on every way out."""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import anyio
import pytest

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import store
from adapters.system_clock import SystemClock
from conformance.people import ACME
from ports.budget import NOTHING, Account, Amount, Balance, Booking, Hold
from ports.context import AuthContext
from ports.errors import ResourceExhausted, Unavailable
from ports.messages import Json, Usage
from stack_b.backends.protocol import Price
from stack_b.budget.balances import Balances, duration
from stack_b.budget.estimate import MEDIA_TOKENS, UNREAD_TOKENS, chat_ask, embed_ask
from stack_b.budget.meter import Meter
from stack_b.budget.plan import Plan, tokens_that_fit
from stack_b.canonical import NOBODY_KNOWN, ChatCall, EmbedCall
from stack_b.limits import Limits
from stack_b.usage import usage_of
from tests.support.reserved import reserved

LIMIT = 1_000
LEASE = timedelta(minutes=1)


class Ledger(InprocBudget):
    """The in-process ledger, with a gate and a number of failures to come."""

    def __init__(self) -> None:
        super().__init__(store(uuid.uuid4().hex), SystemClock())
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.failures = 0
        self.settlements: list[int] = []

    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        hold = await super().hold(auth, amount, on=on, lease=lease, spare=spare)
        await self._pass()
        return hold

    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        await self._pass()
        if self.failures:
            self.failures -= 1
            raise Unavailable("the ledger is away")
        self.settlements += [sum(event.amount.tokens for event in booking.events) for booking in bookings]
        await super().book(auth, bookings)

    async def now(self) -> Balance:
        return await self.balance(ACME, limit=LIMIT)

    async def _pass(self) -> None:
        self.waiting.set()
        await self.gate.wait()


def metered(ledger: Ledger) -> Meter:
    return Meter(ledger, SystemClock(), Balances(ledger, SystemClock()))


def chat(max_tokens: int | None = None, choices: int = 1, **members: Any) -> ChatCall:
    members.setdefault("messages", [{"role": "user", "content": "x" * 100}])
    return ChatCall(model="m", members=members, max_tokens=max_tokens, choices=choices)


def test_a_chat_holds_its_bytes_and_every_choices_tokens() -> None:
    one = chat_ask(chat(max_tokens=10), Limits())
    three = chat_ask(chat(max_tokens=10, choices=3), Limits())

    assert one.prompt_bound > 100
    assert one.amount == one.prompt_bound + 10
    assert three.amount == one.prompt_bound + 30


def test_without_max_tokens_the_default_is_held_and_told() -> None:
    limits = Limits(default_output_tokens=64)

    assert chat_ask(chat(), limits).max_tokens == 64
    assert chat_ask(chat(), limits, model_max_tokens=16).max_tokens == 16


def test_tools_and_media_are_part_of_the_bound() -> None:
    plain = chat_ask(chat(max_tokens=1), Limits()).prompt_bound
    tools = chat_ask(chat(max_tokens=1, tools=[{"type": "function", "function": {"name": "f" * 500}}]), Limits())
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.org/i.png"}}]}]

    assert tools.prompt_bound > plain + 500
    assert chat_ask(chat(max_tokens=1, messages=image), Limits()).prompt_bound > 4_096


def _holding(*parts: Json) -> int:
    return chat_ask(chat(max_tokens=1, messages=[{"role": "user", "content": list(parts)}]), Limits()).prompt_bound


INLINE: Final = "data:video/mp4;base64,aGk="


@pytest.mark.parametrize(
    "part",
    [
        {"type": "hologram", "hologram": {"url": "https://x.org/h"}},
        {"type": "video_url", "video_url": {"url": "https://x.org/v.mp4"}},
        {"type": "audio_url", "audio_url": "https://x.org/a.wav"},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_id": "file-1", "file_data": INLINE}},
        {"type": "file", "file": {"file_data": "https://x.org/f.pdf"}},
        {"type": "document", "source": {"type": "url", "url": "https://x.org/d.pdf"}},
        {"video": "https://x.org/v.mp4"},
        {"type": ["text"], "text": "x"},
        {"type": "text", "text": "x", "content": [{"type": "hologram"}]},
    ],
    ids=str,
)
def test_a_part_that_is_not_understood_holds_as_much_as_a_model_reads(part: Json) -> None:
    assert _holding(part) >= UNREAD_TOKENS
    assert _holding(part, part) < 2 * UNREAD_TOKENS, "nobody reads more than that"


@pytest.mark.parametrize(
    ("part", "least"),
    [
        ({"type": "text", "text": "x" * 100}, 100),
        ({"type": "refusal", "refusal": "x"}, 1),
        ({"type": "file", "file": {"file_id": None, "file_data": "aGk="}}, MEDIA_TOKENS),
        ({"type": "image_url", "image_url": {"url": "https://x.org/i.png"}}, MEDIA_TOKENS),
        ({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}, MEDIA_TOKENS),
        ({"type": "file", "file": {"file_data": INLINE, "filename": "v"}}, MEDIA_TOKENS),
        ({"type": "video_url", "video_url": {"url": INLINE}}, MEDIA_TOKENS),
        ({"type": "image_url", "image_url": {"url": "https://x.org/i.png"}, "cache_control": {}}, MEDIA_TOKENS),
    ],
    ids=str,
)
def test_a_part_that_is_understood_holds_what_it_may_cost(part: Json, least: int) -> None:
    assert least <= _holding(part) < least + 300


def test_of_media_beside_contents_no_less_is_held() -> None:
    said: dict[str, Json] = {
        "role": "user",
        "content": "look",
        "images": ["https://x.org/i.png", "https://x.org/j.png"],
    }

    assert chat_ask(chat(max_tokens=1, messages=[said]), Limits()).prompt_bound >= UNREAD_TOKENS


def test_an_embedding_holds_its_bytes() -> None:
    assert embed_ask(EmbedCall(model="m", inputs=("é", "ab"), members={})).amount == 2 + 2 + 2 + 2


def test_what_fits_is_what_would_be_accepted() -> None:
    call = chat(max_tokens=10_000, choices=2)
    ask = chat_ask(call, Limits())

    plan = Plan(also=(), candidates=(), nanousd=0, about=NOBODY_KNOWN)
    fits = tokens_that_fit(plan, ask, limit=LIMIT)

    assert ask.prompt_bound + 2 * fits <= LIMIT < ask.prompt_bound + 2 * (fits + 1)
    assert tokens_that_fit(plan, ask, limit=5) == 0


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 0}, (3, 0, False)),
        ({"prompt_tokens": 3, "completion_tokens": None}, (3, 5, True)),
        ({"prompt_tokens": None}, (10, 5, True)),
        (None, (10, 5, True)),
    ],
    ids=["a reported zero is a count", "no completion", "no prompt", "nothing"],
)
def test_missing_usage_is_estimated_and_says_so(
    reported: dict[str, Any] | None, expected: tuple[int, int, bool]
) -> None:
    usage = usage_of(reported, prompt_bytes=40, content_bytes=20, price=None)

    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == expected


def test_embeddings_report_no_completion_and_that_is_no_estimate() -> None:
    usage = usage_of({"prompt_tokens": 4, "total_tokens": 4}, prompt_bytes=9, content_bytes=0, price=None)

    assert (usage.completion_tokens, usage.estimated) == (0, False)


def test_costs_are_integers_and_round_up() -> None:
    price = Price(prompt=150_000_000, completion=600_000_000)

    assert price.cost_nanousd(1_000_000, 1_000_000) == 750_000_000
    assert Price(prompt=37_500_000).cost_nanousd(1, 0) == 38


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(0), "0ms"), (timedelta(milliseconds=12), "12ms"), (timedelta(seconds=6), "6s"),
        (timedelta(minutes=6), "6m0s"), (timedelta(hours=23, minutes=4, seconds=9), "23h4m9s"),
    ],
)  # fmt: skip
def test_resets_are_written_as_durations(value: timedelta, text: str) -> None:
    assert duration(value) == text


@pytest.mark.anyio
class TestReserved:
    async def test_what_was_spent_replaces_the_hold(self) -> None:
        ledger = Ledger()

        async with reserved(metered(ledger), ACME, 500, limit=LIMIT, lease=LEASE) as spending:
            held = (await ledger.now()).held
            spending.add(Usage(prompt_tokens=30, completion_tokens=12))

        assert held == 500
        assert ledger.settlements == [42]
        assert (await ledger.now()).held == 0

    async def test_a_failure_settles_what_was_spent_until_then(self) -> None:
        ledger = Ledger()

        async def fail() -> None:
            async with reserved(metered(ledger), ACME, 500, limit=LIMIT, lease=LEASE) as spending:
                spending.add(Usage(prompt_tokens=7))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

        assert ledger.settlements == [7]

    async def test_a_call_that_never_came_back_costs_what_was_assumed(self) -> None:
        ledger = Ledger()
        entered = asyncio.Event()

        async def call() -> None:
            async with reserved(metered(ledger), ACME, 500, limit=LIMIT, lease=LEASE) as spending:
                spending.assume(Usage(prompt_tokens=9))
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(call())
        await entered.wait()
        task.cancel()
        with anyio.fail_after(5):
            await asyncio.wait({task})

        assert task.cancelled()
        assert ledger.settlements == [9]

    async def test_a_count_takes_the_place_of_what_was_assumed(self) -> None:
        ledger = Ledger()

        async with reserved(metered(ledger), ACME, 500, limit=LIMIT, lease=LEASE) as spending:
            spending.assume(Usage(prompt_tokens=9))
            spending.add(Usage())
            spending.assume(Usage(prompt_tokens=9))
            spending.add(Usage(prompt_tokens=4))

        assert ledger.settlements == [4]

    async def test_cancelling_twice_does_not_stop_the_settlement(self) -> None:
        ledger = Ledger()
        meter = metered(ledger)
        entered = asyncio.Event()

        async def call() -> None:
            async with reserved(meter, ACME, 500, limit=LIMIT, lease=LEASE) as spending:
                spending.add(Usage(prompt_tokens=5))
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(call())
        await entered.wait()
        ledger.gate.clear()
        ledger.waiting.clear()
        task.cancel()
        await ledger.waiting.wait()
        task.cancel()
        with anyio.fail_after(5):
            await asyncio.wait({task})
        ledger.gate.set()
        await meter.drain()

        assert ledger.settlements == [5]
        assert (await ledger.now()).held == 0

    async def test_a_caller_cancelled_while_reserving_leaves_no_hold(self) -> None:
        ledger = Ledger()
        meter = metered(ledger)
        ledger.gate.clear()

        async def call() -> None:
            async with reserved(meter, ACME, 500, limit=LIMIT, lease=LEASE):
                pytest.fail("the block was entered")

        task = asyncio.create_task(call())
        await ledger.waiting.wait()
        task.cancel()
        with anyio.fail_after(5):
            await asyncio.wait({task})
        ledger.gate.set()
        await meter.drain()

        assert ledger.settlements == [0]
        assert (await ledger.now()).held == 0

    async def test_a_ledger_that_is_away_for_a_moment_is_asked_again(self) -> None:
        ledger = Ledger()
        ledger.failures = 2

        with anyio.fail_after(5):
            async with reserved(metered(ledger), ACME, 500, limit=LIMIT, lease=LEASE) as spending:
                spending.add(Usage(prompt_tokens=5))

        assert ledger.settlements == [5]

    async def test_a_refusal_holds_nothing_and_enters_nothing(self) -> None:
        ledger = Ledger()
        meter = metered(ledger)

        async with reserved(meter, ACME, 600, limit=LIMIT, lease=LEASE):
            with pytest.raises(ResourceExhausted) as refused:
                async with reserved(meter, ACME, 600, limit=LIMIT, lease=LEASE):
                    pytest.fail("the block was entered")

        assert refused.value.code == "budget_in_flight"
        assert len(ledger.settlements) == 1
