"""Limits as an integrator meets them: 429 and 503, each with a time to come back."""

from datetime import timedelta

import pytest

from conformance.clock import ManualClock
from conformance.people import ACME, NODE
from ports.tenant import Entitlements
from stack_a.deps import Shedding
from stack_a.runs.shed import LOOK_EVERY
from tests.support.stack_a import stack_a

pytestmark = pytest.mark.anyio


async def test_beyond_the_rate_a_run_is_refused_with_the_time_to_come_back() -> None:
    async with stack_a(clock=ManualClock()) as node:
        await node.entitle(ACME, Entitlements(runs_per_minute=2))
        accepted = [await node.create(key=f"k{n}") for n in range(2)]
        refused = await node.create(key="k2")
        repeated = await node.create(key="k1")
        other = await node.create("globex")

    assert [one.status_code for one in accepted] == [202, 202]
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "30"
    assert refused.json()["error"]["retryable"] is True
    assert (repeated.status_code, repeated.json()["run_id"]) == (202, accepted[1].json()["run_id"])
    assert other.status_code == 202


async def test_with_too_many_queued_a_run_is_refused_and_its_key_is_still_good_afterwards() -> None:
    async with stack_a() as node:
        await node.entitle(ACME, Entitlements(max_queued_runs=1))
        first = await node.created(key="k0")
        refused = await node.create(key="k1")
        await node.cancel(first)
        accepted = await node.create(key="k1")
        told = (await node.get("/metrics")).text

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert accepted.status_code == 202
    assert 'agentos_run_refusals_total{code="concurrency_limited"} 1.0' in told


async def test_an_overloaded_node_refuses_new_runs_and_stays_ready() -> None:
    async with stack_a(clock=(clock := ManualClock()), shedding=Shedding(max_queue_depth=1)) as node:
        first = await node.create(key="k0")
        await node.created(key="k1")
        await clock.advance(LOOK_EVERY)
        refused = await node.create(key="k2")
        repeated = await node.create(key="k0")
        ready = await node.get("/readyz")

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert repeated.json()["run_id"] == first.json()["run_id"]
    assert ready.status_code == 200


async def test_the_metrics_say_how_many_wait_although_nobody_asks_whether_the_node_is_ready() -> None:
    async with stack_a(clock=(clock := ManualClock())) as node:
        for number in range(3):
            await node.created(key=f"k{number}")
        # One is in the hands of a worker that has no place for it yet.
        await node.api.queue.lease(NODE, limit=1, duration=timedelta(minutes=1))
        at_first = (await node.get("/metrics")).text
        await clock.advance(LOOK_EVERY)
        a_second_later = (await node.get("/metrics")).text

    assert "agentos_queue_depth_messages 3.0" not in at_first
    assert "agentos_queue_depth_messages 3.0" in a_second_later


async def test_the_document_says_what_may_be_refused() -> None:
    async with stack_a() as node:
        document = (await node.http.get("/openapi.json")).json()

    responses = document["paths"]["/v1/agents/{agent_id}/runs"]["post"]["responses"]
    assert "`rate_limited`" in responses["429"]["description"]
    assert "`concurrency_limited`" in responses["429"]["description"]
    assert {"Retry-After"} <= responses["429"]["headers"].keys() & responses["503"]["headers"].keys()
