"""The pains of others with money: races, leaked holds, free models, two names for one limit, caches paid twice."""

import asyncio
import uuid
from typing import Any

import pytest

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import store
from adapters.system_clock import SystemClock
from conformance.people import PLATFORM
from ports.budget import Budget
from ports.errors import Unavailable
from stack_b.backends.protocol import Price
from tests.support.scripted_upstream import completion
from tests.support.stack_b import CALLERS, stack_b
from tests.support.writing_backend import Writing

pytestmark = pytest.mark.anyio

PROMPT = len(b'{"messages":[{"role":"user","content":"hello"}]}')
PRICE = Price(prompt=10**6, completion=2 * 10**6, cache_read=10**5)


def ledger() -> InprocBudget:
    return InprocBudget(store(uuid.uuid4().hex), SystemClock())


@pytest.mark.parametrize("in_chunks", [False, True])
async def test_a_race_for_the_last_tokens_is_won_by_as_many_as_fit(in_chunks: bool) -> None:
    shared, together = ledger(), asyncio.Event()

    async def wait(_number: int) -> None:
        await together.wait()

    each = PROMPT + 50
    backends = [Writing(name=f"b-{number}", tokens=50, between=wait) for number in range(2)]
    async with (
        stack_b(backends[0], limit=7 * each, budget=shared, budget_in_chunks=in_chunks) as one,
        stack_b(backends[1], limit=7 * each, budget=shared, budget_in_chunks=in_chunks) as other,
    ):
        asking = [
            asyncio.create_task(node.chat(model="m-1", max_tokens=50)) for _ in range(32) for node in (one, other)
        ]
        done: set[asyncio.Task[Any]] = set()
        while len(done) < 64 - 7:  # those that are told no; the others wait
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=5)
            await asyncio.sleep(0)
        balance = await one.balance()
        together.set()
        answers = await asyncio.gather(*asking)

    assert balance.settled + balance.held <= balance.limit
    won = sum(answer.status_code == 200 for answer in answers)
    assert sum(backend.written for backend in backends) == won * 50
    assert won == 7
    codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code != 200}
    assert codes == {"budget_in_flight"}


@pytest.mark.parametrize("turns", range(0, 40, 3))
@pytest.mark.parametrize("stream", [True, False])
async def test_no_hold_leaks_wherever_a_client_leaves(turns: int, stream: bool) -> None:
    async def moment(_number: int) -> None:
        await asyncio.sleep(0)

    async with stack_b(Writing(tokens=20, between=moment, stops_billing=True), limit=10_000) as node:
        asking = asyncio.create_task(node.chat(model="m-1", stream=stream, max_tokens=100))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        for _ in range(50):
            await asyncio.sleep(0)
        balance = await node.balance()

    assert balance.held == 0


async def test_a_model_without_a_price_is_not_free_as_a_fallback_either() -> None:
    books = ledger()
    await books.set_budget(PLATFORM, CALLERS["acme"].tenant, Budget(id="money", unit="nanousd", limit=10**6))
    priced = Writing(name="priced", price=PRICE, failure=Unavailable("down", code="upstream_error"))
    unpriced = Writing(name="unpriced")
    async with stack_b(priced, unpriced, budget=books) as node:
        answer = await node.chat(model="m-1", max_tokens=20)

    assert (answer.status_code, unpriced.told) == (502, [])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [True, False])
async def test_either_name_of_the_limit_is_held_and_told(name: str, stream: bool) -> None:
    backend = Writing(tokens=5)
    async with stack_b(backend, limit=PROMPT + 99) as node:
        refused = await node.chat(model="m-1", **limited(name, 100, stream=stream))
        answer = await node.chat(model="m-1", **limited(name, 99, stream=stream))

    assert refused.json()["error"]["details"]["max_tokens_that_fits"] == 99
    assert (answer.status_code, backend.told) == (200, [99])


async def test_two_names_that_disagree_are_refused() -> None:
    async with stack_b(Writing()) as node:
        refused = await node.chat(model="m-1", max_tokens=5, max_completion_tokens=500)

    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "validation_failed")


async def test_cached_tokens_are_counted_once_and_priced_once() -> None:
    class Cached(Writing):
        async def chat(self, *_: Any) -> dict[str, Any]:
            usage = {
                "prompt_tokens": 40,
                "completion_tokens": 5,
                "total_tokens": 45,
                "prompt_tokens_details": {"cached_tokens": 30},
            }
            answer: dict[str, Any] = completion(usage=usage).body
            return answer

    books = ledger()
    async with stack_b(Cached(price=PRICE), budget=books) as node:
        answer = await node.chat(model="m-1", max_tokens=20)
        balance = await node.balance()

    [event] = [event for _, event in books._books.events.values()]
    assert (event.fresh_tokens, event.cache_read_tokens, event.output_tokens) == (10, 30, 5)
    assert balance.settled == 45
    assert answer.json()["usage"]["cost_nanousd"] == event.cost_nanousd == 10 + 3 + 5 * 2


def limited(name: str, most: int, *, stream: bool) -> dict[str, Any]:
    return {"stream": stream, name: most}
