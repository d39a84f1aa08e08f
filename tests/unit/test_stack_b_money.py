"""What a call may cost and has cost: prices by version, kinds of tokens, and the budgets that a request is of."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import store
from adapters.system_clock import SystemClock
from conformance.people import ACME, PLATFORM
from ports.budget import Budget
from ports.errors import InvalidArgument, PermissionDenied
from ports.messages import Usage
from stack_b.backends.catalog import Candidate
from stack_b.backends.demo import DemoBackend
from stack_b.backends.protocol import ModelCard, Price
from stack_b.backends.settings import MOST_TOKENS
from stack_b.budget.estimate import Ask
from stack_b.budget.meter import events_of
from stack_b.budget.plan import planned
from stack_b.budget.prices import Prices, parse_prices, parse_rows
from stack_b.budget.spending import Served, Spending
from stack_b.canonical import NOBODY_KNOWN, About
from stack_b.usage import kinds_of, usage_of
from tests.support.stack_b import CALLERS, stack_b

MILLION = 1_000_000
PRICE = Price(prompt=10 * MILLION, completion=40 * MILLION, cache_read=MILLION, cache_write=20 * MILLION)
ASK = Ask(amount=300, prompt_bound=100, max_tokens=200)
DEMO = DemoBackend(SystemClock())
MONEY = Budget(id="money", unit="nanousd", limit=10**9)


def candidate(price: Price | None, model: str = "m-1") -> Candidate:
    return Candidate(DEMO, ModelCard(id=model, upstream=model, price=price))


def row(valid_from: str, prompt: str, model: str = "m-1", **more: Any) -> dict[str, Any]:
    return {"model": model, "valid_from": valid_from, "prompt": prompt, **more}


def test_cached_tokens_are_paid_once_and_at_their_own_price() -> None:
    reported = {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_creation_tokens": 30},
    }

    usage = usage_of(reported, prompt_bytes=0, content_bytes=0, price=PRICE)

    assert usage.cost_nanousd == 10 * 10 + 60 * 1 + 30 * 20 + 10 * 40


@pytest.mark.parametrize(
    "details",
    [{"cached_tokens": 900}, {"cached_tokens": -5}, {"cached_tokens": "many"}, {"cached_tokens": None}, None],
)
def test_kinds_are_parts_of_the_whole_whatever_a_backend_says(details: Any) -> None:
    kinds = kinds_of({"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": details})

    assert 0 <= kinds.cache_read + kinds.cache_write <= 100


def test_an_event_says_each_kind_apart_and_all_of_them_together() -> None:
    spending = Spending()
    spending.add(Usage())
    spending.add(
        Usage(prompt_tokens=100, completion_tokens=40, cost_nanousd=9),
        Served(model="m-1", backend="b", price="v", cache_read=60, cache_write=30, reasoning=15),
    )
    spending.assume(Usage(prompt_tokens=7, estimated=True), Served(model="m-2", backend="b"))

    known, assumed = events_of(ACME, About(agent="agt_x", session="s"), spending)

    assert (known.fresh_tokens, known.cache_read_tokens, known.cache_write_tokens) == (10, 60, 30)
    assert (known.output_tokens, known.reasoning_tokens, known.amount.tokens) == (25, 15, 140)
    assert (known.attempt, known.agent, known.principal, known.price) == (2, "agt_x", ACME.principal, "v")
    assert (assumed.attempt, assumed.model, assumed.estimated) == (3, "m-2", True)
    assert known.request == assumed.request


def test_the_price_in_force_is_that_of_its_time() -> None:
    rows = [row("2026-06-01T00:00:00Z", "2"), row("2026-01-01T00:00:00Z", "1", cache_read="0.25")]
    prices = parse_prices(json.dumps(rows))

    before = prices.of("m-1", datetime(2025, 12, 31, tzinfo=UTC))
    first = prices.of("m-1", datetime(2026, 5, 31, tzinfo=UTC))
    second = prices.priced(candidate(PRICE), datetime(2026, 6, 1, tzinfo=UTC)).card.price

    assert before is None
    assert first == Price(prompt=1_000 * MILLION, cache_read=250 * MILLION, version="m-1@2026-01-01T00:00:00+00:00")
    assert second is not None
    assert second.prompt == 2_000 * MILLION


def test_a_model_without_a_row_keeps_the_price_of_its_settings() -> None:
    assert Prices().priced(candidate(PRICE), datetime.now(UTC)) == candidate(PRICE)


@pytest.mark.parametrize(
    "rows",
    [
        [row("2026-01-01T00:00:00", "1")], [row("2026-01-01T00:00:00Z", "cheap")], [row("2026-01-01T00:00:00Z", "-1")],
        [row("2026-01-01T00:00:00Z", "1"), row("2026-01-01T00:00:00Z", "2")], [{"model": "m-1"}], {"m-1": 1},
        [row("2026-01-01T00:00:00Z", "1", more="1")], [row("2026-01-01T00:00:00Z", "0.0000000001")],
        [row("2026-01-01T00:00:00Z", "1e999999")], [row("2026-01-01T00:00:00Z", "1e30")],
        [row("2026-01-01T00:00:00Z", "1000000.000000001")], [row("2026-01-01T00:00:00Z", "1" + "0" * 10_000)],
        [row("2026-01-01T00:00:00Z", "0." + "0" * 30 + "1")], [row("2026-01-01T00:00:00Z", "1e-999999")],
    ],
)  # fmt: skip
def test_prices_that_can_not_be_are_refused(rows: Any) -> None:
    with pytest.raises(InvalidArgument):
        parse_prices(json.dumps(rows))


def test_the_dearest_price_there_may_be_makes_costs_that_a_ledger_can_hold() -> None:
    [priced] = parse_rows(json.dumps([row("2026-01-01T00:00:00Z", "1e6", completion="1000000")]))
    price = Prices([priced]).of(priced.model, datetime(2027, 1, 1, tzinfo=UTC))

    assert price is not None
    assert price.most_nanousd(MOST_TOKENS, MOST_TOKENS) < 2**62


def test_a_cost_is_held_at_the_dearest_of_what_may_serve() -> None:
    cheap, dear = candidate(Price(prompt=1, completion=1)), candidate(PRICE)

    plan = planned(ACME, [MONEY], (cheap, dear), NOBODY_KNOWN, ASK, tier="m-1")

    assert plan.nanousd == 100 * 20 + 200 * 40
    assert planned(ACME, [], (cheap, dear), NOBODY_KNOWN, ASK, tier="m-1").nanousd == 0


def test_what_has_no_price_does_not_serve_where_money_is_limited() -> None:
    priced, unpriced = candidate(PRICE), candidate(None)

    assert planned(ACME, [MONEY], (unpriced, priced), NOBODY_KNOWN, ASK, tier="m-1").candidates == (priced,)
    assert planned(ACME, [replace(MONEY, mode="shadow")], (unpriced,), NOBODY_KNOWN, ASK, tier="m-1").candidates == (
        unpriced,
    )
    assert planned(ACME, [], (unpriced,), NOBODY_KNOWN, ASK, tier="m-1").candidates == (unpriced,)
    with pytest.raises(PermissionDenied):
        planned(ACME, [MONEY], (unpriced,), NOBODY_KNOWN, ASK, tier="m-1")


def test_a_budget_applies_to_the_requests_of_its_scope() -> None:
    budgets = [
        Budget(id="all", limit=1),
        Budget(id="each-key", limit=1, scope="key"),
        Budget(id="bens", limit=1, scope="key", scope_id="usr_ben"),
        Budget(id="each-agent", limit=1, scope="agent"),
        Budget(id="each-session", limit=1, scope="session"),
        Budget(id="tier", limit=1, scope="tier", scope_id="m-1"),
        Budget(id="other-tier", limit=1, scope="tier", scope_id="m-2"),
    ]

    plan = planned(ACME, budgets, (candidate(PRICE),), About(agent="agt_x"), ASK, tier="m-1")

    assert [account.key for account in plan.also] == ["all", "each-key usr_ann", "each-agent agt_x", "tier"]


@pytest.mark.anyio
class TestBudgetsOfTheGateway:
    async def test_a_hard_budget_of_a_key_refuses_and_check_says_so_before(self) -> None:
        async with stack_b(budget=await ledger_with(Budget(id="mine", limit=5, scope="key"))) as node:
            refused = await node.chat()
            checked = await node.post("/v1/policy/check", {"model": "agentos-demo", "messages": MESSAGES})

        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_exceeds_budget")
        assert checked.json()["budget"]["fits"] is False

    async def test_a_soft_budget_is_told_in_the_receipt_and_a_shadow_one_is_not(self) -> None:
        budgets = (Budget(id="wish", limit=5, mode="soft"), Budget(id="dream", limit=5, mode="shadow"))
        ledger = await ledger_with(*budgets)
        async with stack_b(budget=ledger) as node:
            answer = await node.chat()

        assert answer.json()["usage"]["budgets_over"] == ["wish"]
        assert await ledger.deviations(CALLERS["acme"]) == ()

    async def test_a_model_without_a_price_is_refused_under_a_cost_budget(self) -> None:
        async with stack_b(budget=await ledger_with(MONEY)) as node:
            refused = await node.chat()

        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_entitled")


MESSAGES = [{"role": "user", "content": "hello"}]


async def ledger_with(*budgets: Budget) -> InprocBudget:
    ledger = InprocBudget(store(uuid.uuid4().hex), SystemClock())
    for budget in budgets:
        await ledger.set_budget(PLATFORM, CALLERS["acme"].tenant, budget)
    return ledger
