"""What budgets are counted by, on every surface; what they refuse, in which words; and that `check` says it before."""

import asyncio
import json
import uuid
from typing import Any

import pytest

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import store
from adapters.inproc.tenant import InprocTenants
from adapters.system_clock import SystemClock
from conformance.people import PLATFORM
from ports.budget import Budget, UsageEvent
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import TenantId
from ports.tenant import Entitlements, Tenant
from stack_b.backends.protocol import Price
from stack_b.budget.prices import parse_prices
from stack_b.limits import Limits
from stack_b.routing.rules import RoutingRules
from tests.support.stack_b import CALLERS, stack_b
from tests.support.writing_backend import Writing

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hello"}]
TOLD = {"agent_id": "agt_x", "session_id": "s-1"}
CHAT = "/v1/chat/completions"
ALSO_IN_BODY: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES, "metadata": TOLD},
    "/v1/responses": {"input": "hello", "metadata": TOLD},
    "/v1/messages": {"max_tokens": 50, "messages": MESSAGES, "metadata": TOLD},
}
EMBED: dict[str, Any] = {"model": "agentos-demo-embed", "input": "hello"}
PROMPT = len(b'{"messages":[{"role":"user","content":"hello"}]}')


async def ledger_with(*budgets: Budget) -> InprocBudget:
    ledger = InprocBudget(store(uuid.uuid4().hex), SystemClock())
    for budget in budgets:
        await ledger.set_budget(PLATFORM, CALLERS["acme"].tenant, budget)
    return ledger


def booked(ledger: InprocBudget) -> list[UsageEvent]:
    return [event for _, event in ledger._books.events.values()]


EACH_AGENT = Budget(id="each-agent", limit=5, scope="agent")
EACH_SESSION = Budget(id="each-session", limit=5, scope="session")


@pytest.mark.parametrize("budget", [EACH_AGENT, EACH_SESSION], ids=["agent", "session"])
@pytest.mark.parametrize("path", [*ALSO_IN_BODY, "/v1/embeddings"])
async def test_agents_and_sessions_have_budgets_on_every_surface_by_what_the_body_says(
    path: str, budget: Budget
) -> None:
    body = {**EMBED, "metadata": TOLD} if path == "/v1/embeddings" else {"model": "agentos-demo", **ALSO_IN_BODY[path]}
    async with stack_b(budget=await ledger_with(budget)) as node:
        refused = await node.post(path, body)

    error = refused.json()["error"]
    assert refused.status_code == 400
    assert "each-" in json.dumps(error["details"])


@pytest.mark.parametrize("budget", [EACH_AGENT, EACH_SESSION], ids=["agent", "session"])
@pytest.mark.parametrize("path", [*ALSO_IN_BODY, "/v1/embeddings"])
async def test_and_by_what_headers_say(path: str, budget: Budget) -> None:
    body = {name: value for name, value in ALSO_IN_BODY.get(path, EMBED).items() if name != "metadata"}
    body = {"model": "agentos-demo", **body}
    headers = {"x-agent-id": "agt_x", "x-session-id": "a%20b%C3%A9"}
    async with stack_b(budget=await ledger_with(budget)) as node:
        refused = await node.post(path, body, **headers)
        allowed = await node.post(path, body)

    assert refused.status_code == 400
    assert allowed.status_code == 200
    key = refused.json()["error"]["details"]["budget"]
    assert key == ("each-agent agt_x" if budget is EACH_AGENT else "each-session a bé")


async def test_usage_events_say_agent_and_session_and_headers_go_first() -> None:
    ledger = await ledger_with()
    async with stack_b(budget=ledger) as node:
        body = {"model": "agentos-demo", **ALSO_IN_BODY["/v1/messages"]}
        await node.post("/v1/messages", body, **{"x-agent-id": "agt_y"})

    [event] = booked(ledger)
    assert (event.agent, event.session) == ("agt_y", "s-1")


async def test_check_counts_by_headers_too() -> None:
    async with stack_b(budget=await ledger_with(EACH_AGENT)) as node:
        asked = {"model": "agentos-demo", "messages": MESSAGES}
        checked = await node.post("/v1/policy/check", asked, **{"x-agent-id": "agt_x"})

    assert checked.json()["budget"]["fits"] is False


@pytest.mark.parametrize("given", ["%00", "%ff", "a" * 257, ""])
async def test_a_header_that_can_not_be_read_is_refused(given: str) -> None:
    async with stack_b() as node:
        body = {"model": "agentos-demo", **ALSO_IN_BODY[CHAT]}
        refused = await node.post(CHAT, body, **{"x-session-id": given})

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
    assert refused.json()["error"]["details"]["path"] == "x-session-id"


async def test_an_address_is_no_session_name_that_is_kept() -> None:
    ledger = await ledger_with()
    async with stack_b(budget=ledger) as node:
        body = {"model": "agentos-demo", "messages": MESSAGES}
        await node.post(CHAT, body, **{"x-session-id": "eve%40example.com"})

    [event] = booked(ledger)
    assert event.session == "[EMAIL]"


async def test_cost_goes_by_the_price_file() -> None:
    prices = parse_prices(
        json.dumps(
            [
                {"model": "m-1", "valid_from": "2020-01-01T00:00:00Z", "prompt": "9", "completion": "9"},
                {"model": "m-2", "valid_from": "2020-01-01T00:00:00Z", "prompt": "1", "completion": "1"},
            ]
        )
    )
    by_backends = Writing(name="one", price=Price(prompt=1, completion=1))
    by_file = Writing(name="two", model="m-2", price=Price(prompt=50, completion=50))
    rules = RoutingRules(tiers={"fast": ("m-1", "m-2")})
    async with stack_b(by_backends, by_file, routing=rules, prices=prices) as node:
        answer = await node.post(CHAT, {"model": "fast", "messages": MESSAGES}, **{"x-route-preference": "cost"})

    assert answer.json()["route"]["backend"] == "two"


async def test_max_tokens_is_judged_by_each_that_may_serve() -> None:
    small, large = Writing(name="small", max_tokens=100), Writing(name="large", max_tokens=1_000)
    async with stack_b(small, large) as node:
        answer = await node.chat(model="m-1", max_tokens=500)
        refused = await node.chat(model="m-1", max_tokens=2_000)

    assert (answer.status_code, answer.json()["route"]["backend"], small.told) == (200, "large", [])
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        422,
        "max_tokens is at most 1000 for this model",
    )


async def test_a_fallback_is_told_no_more_than_it_may_write() -> None:
    large = Writing(name="large", max_tokens=1_000, failure=Unavailable("down", code="upstream_error"))
    small = Writing(name="small", max_tokens=100)
    async with stack_b(large, small) as node:
        answer = await node.chat(model="m-1")

    assert answer.status_code == 200
    assert (large.told, small.told) == ([1_000], [100])


PRICED = Price(prompt=2 * 10**6, completion=10 * 10**6)


@pytest.mark.parametrize(
    ("budget", "fits"),
    [
        (Budget(id="mine", limit=PROMPT + 40, scope="key"), 40),
        (Budget(id="money", limit=PROMPT * 2 + 7 * 10 + 9, unit="nanousd"), 7),
        (Budget(id="nothing", limit=1), 0),
    ],
    ids=["tokens", "money", "none"],
)
async def test_what_fits_is_said_for_whatever_budget_refuses(budget: Budget, fits: int) -> None:
    async with stack_b(Writing(price=PRICED), budget=await ledger_with(budget)) as node:
        refused = await node.chat(model="m-1", max_tokens=1_000)
        answer = await node.chat(model="m-1", max_tokens=max(1, fits))

    assert refused.json()["error"]["code"] == "request_exceeds_budget"
    assert refused.json()["error"]["details"]["max_tokens_that_fits"] == fits
    assert answer.status_code == (200 if fits else 400)


async def test_what_fits_is_the_least_of_all_budgets() -> None:
    budgets = (
        Budget(id="a", limit=PROMPT + 40),
        Budget(id="b", limit=PROMPT + 20),
        Budget(id="soft", limit=1, mode="soft"),
    )
    async with stack_b(Writing(), limit=PROMPT + 30, budget=await ledger_with(*budgets)) as node:
        refused = await node.chat(model="m-1", max_tokens=1_000)

    assert refused.json()["error"]["details"]["max_tokens_that_fits"] == 20


async def test_check_counts_what_this_process_holds_idle_of_every_budget() -> None:
    limit = 40 * (PROMPT + 10)
    ledger = await ledger_with(Budget(id="mine", limit=limit, scope="key"))
    async with stack_b(Writing(tokens=1), budget=ledger, budget_in_chunks=True) as node:
        await node.chat(model="m-1", max_tokens=10)
        await asyncio.sleep(0)
        [event] = [event async for event in _events(ledger)]
        left = limit - event.amount.tokens
        checked = await node.post(
            "/v1/policy/check", {"model": "m-1", "messages": MESSAGES, "max_tokens": left - PROMPT}
        )
        answer = await node.chat(model="m-1", max_tokens=left - PROMPT)

    assert checked.json()["budget"]["fits"] is True
    assert answer.status_code == 200


async def _events(ledger: InprocBudget) -> Any:
    """Once they are booked."""
    while not booked(ledger):  # noqa: ASYNC110 - another task books
        await asyncio.sleep(0.01)
    for event in booked(ledger):
        yield event


async def test_check_of_a_stream_holds_a_slice_as_the_stream_would() -> None:
    limits = Limits(output_slice_tokens=100)
    asked = {"model": "m-1", "messages": MESSAGES, "max_tokens": 10_000}
    async with stack_b(Writing(stops_billing=True), limit=PROMPT + 100, limits=limits) as node:
        whole = await node.post("/v1/policy/check", asked)
        stream = await node.post("/v1/policy/check", {**asked, "stream": True})

    assert (whole.json()["budget"]["fits"], stream.json()["budget"]["fits"]) == (False, True)
    assert stream.json()["budget"]["would_hold"] == PROMPT + 100


async def test_a_soft_budget_is_not_told_because_a_chunk_was_leased() -> None:
    ledger = await ledger_with(Budget(id="wish", limit=1_000, mode="soft"))
    async with stack_b(Writing(tokens=1), budget=ledger, budget_in_chunks=True) as node:
        answers = [await node.chat(model="m-1", max_tokens=10) for _ in range(100)]

    told = ["budgets_over" in answer.json()["usage"] for answer in answers]
    assert told == [11 * (number + 1) > 1_000 for number in range(100)]


async def test_nor_because_another_process_leased_one() -> None:
    ledger = await ledger_with(Budget(id="wish", limit=1_000, mode="soft"))
    async with (
        stack_b(Writing(tokens=1), budget=ledger, budget_in_chunks=True) as one,
        stack_b(Writing(tokens=1), budget=ledger, budget_in_chunks=True) as other,
    ):
        answers = [await node.chat(model="m-1", max_tokens=10) for node in (one, other)]

    assert not any("budgets_over" in answer.json()["usage"] for answer in answers)


ROUTING = RoutingRules(aliases={"quick": "fast", "short": "m-1"}, tiers={"fast": ("m-1",)})


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize(("scope_id", "names"), [("fast", ("fast", "quick")), ("m-1", ("m-1", "short"))])
async def test_an_alias_is_no_way_around_the_budget_of_a_tier(
    scope_id: str, names: tuple[str, str], *, each: bool
) -> None:
    room = PROMPT + 10
    ledger = await ledger_with(Budget(id="tier", limit=room, scope="tier", scope_id="" if each else scope_id))
    async with stack_b(Writing(tokens=room), budget=ledger, routing=ROUTING) as node:
        answers = [await node.chat(model=name, max_tokens=10) for name in (*names, "m-1", "fast")]

    codes = [answer.json().get("error", {}).get("code") for answer in answers]
    assert codes[:2] == [None, "budget_exceeded"]
    assert sorted(codes[2:], key=str) == [None, "budget_exceeded"] or not each


async def test_an_alias_may_have_a_budget_of_its_own() -> None:
    ledger = await ledger_with(Budget(id="quick", limit=PROMPT, scope="tier", scope_id="quick"))
    async with stack_b(Writing(), budget=ledger, routing=ROUTING) as node:
        answers = [await node.chat(model=name, max_tokens=10) for name in ("quick", "fast")]

    assert [answer.status_code for answer in answers] == [400, 200]


class Watched(InprocBudget):
    """Says when it was asked for a tenant's budgets."""

    asked: asyncio.Event

    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        self.asked.set()
        return await super().budgets(auth)


class AnswersSecond(InprocTenants):
    """Tells of a tenant once somebody has asked for its budgets."""

    budgets: Watched

    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant:
        async with asyncio.timeout(5):
            await self.budgets.asked.wait()
        return await super().get(auth, tenant)


async def test_after_a_pause_a_tenant_and_its_budgets_are_asked_for_at_the_same_time() -> None:
    shared = store(uuid.uuid4().hex)
    ledger, directory = Watched(shared, SystemClock()), AnswersSecond(shared, SystemClock())
    ledger.asked, directory.budgets = asyncio.Event(), ledger
    async with stack_b(budget=ledger, tenant=directory) as node:
        tenant = CALLERS["acme"].tenant
        await directory.create(
            PLATFORM, tenant, name="acme", entitlements=Entitlements(models=("*",), tokens_per_day=10**6)
        )
        answered = await node.chat()

    assert answered.status_code == 200
