"""Quotas of requests and streams: exact, however many come at once, and each with its own refusal."""

import asyncio
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from msgspec.structs import replace

from adapters.system_clock import SystemClock
from conformance.clock import ManualClock
from conformance.people import ACME, ACME_BEN, GLOBEX
from ports.context import AuthContext
from ports.errors import ResourceExhausted
from ports.ids import TenantId
from ports.quota_rules import RequestRates, StreamPlaces, part_of
from ports.tenant import Entitlements, Tenant
from stack_b.entitlement import TenantCache
from stack_b.listeners import Seats
from tests.support.held_backend import HeldBackend
from tests.support.stack_a import stack_a
from tests.support.stack_b import stack_b

pytestmark = pytest.mark.anyio

MANY = 40
LIMIT = 5


# The rules.


async def test_a_bucket_gives_a_minutes_worth_at_once_and_refills_evenly() -> None:
    clock = ManualClock()
    rates = RequestRates(clock)

    def taken(count: int, tenant: Any = ACME.tenant) -> int:
        fine = 0
        for _ in range(count):
            had_room = rates.has_room(tenant, 6)
            try:
                rates.take(tenant, 6)
            except ResourceExhausted:
                assert not had_room
                continue
            assert had_room
            fine += 1
        return fine

    first, others = taken(MANY), taken(3, GLOBEX.tenant)
    with pytest.raises(ResourceExhausted) as refused:
        rates.take(ACME.tenant, 6)
    wait = refused.value.retry_after or pytest.fail("it says when")
    await clock.advance(wait)
    after = taken(MANY)
    await clock.advance(wait * 60)
    rested = taken(MANY)

    assert (first, others, after, rested) == (6, 3, 1, 6)
    assert refused.value.code == "rate_limited"
    assert wait.total_seconds() == pytest.approx(10)


async def test_a_refused_request_costs_nothing() -> None:
    """Who keeps trying is let in as soon as who waits."""
    clock = ManualClock()
    rates = RequestRates(clock)
    rates.take(ACME.tenant, 1)
    for _ in range(MANY):
        with pytest.raises(ResourceExhausted) as refused:
            rates.take(ACME.tenant, 1)
    await clock.advance(refused.value.retry_after or pytest.fail("it says when"))

    rates.take(ACME.tenant, 1)


def opened(places: StreamPlaces, auth: AuthContext, **caps: int) -> Any:
    return places.take(auth, **{"per_tenant": LIMIT, "per_principal": 3, **caps})


def test_streams_are_counted_by_tenant_and_by_principal_and_given_back_once() -> None:
    places = StreamPlaces(kind="streams")
    ann = [opened(places, ACME) for _ in range(3)]
    with pytest.raises(ResourceExhausted) as refused:
        opened(places, ACME)
    ben = [opened(places, ACME_BEN) for _ in range(2)]
    with pytest.raises(ResourceExhausted):
        opened(places, ACME_BEN)
    opened(places, GLOBEX)
    ben[0]()
    ben[0]()
    with pytest.raises(ResourceExhausted):
        opened(places, ACME)
    opened(places, ACME_BEN)
    with pytest.raises(ResourceExhausted):
        opened(places, ACME_BEN)

    assert refused.value.code == "concurrency_limited"
    assert refused.value.retry_after is not None
    assert places.count == 6
    assert len(ann) == 3


@pytest.mark.parametrize(("limit", "share", "part"), [(512, 1, 512), (512, 3, 170), (2, 3, 1)])
def test_processes_that_share_the_work_share_the_limit(limit: int, share: int, part: int) -> None:
    assert part_of(limit, share) == part


# Stack A.


async def test_of_forty_requests_at_once_stack_a_lets_as_many_in_as_the_tenant_may_send() -> None:
    async with stack_a() as node:
        await node.entitle(ACME, Entitlements(requests_per_minute=LIMIT))
        answers = await together(lambda: node.get("/v1/runs"))
        others = await node.get("/v1/runs", "globex")

    assert statuses(answers) == {200: LIMIT, 429: MANY - LIMIT}
    assert others.status_code == 200
    assert_told(answers, "rate_limited")


async def test_of_forty_event_streams_at_once_stack_a_opens_as_many_as_the_tenant_may_have() -> None:
    async with stack_a() as node:
        await node.entitle(ACME, Entitlements(max_event_streams=100, max_event_streams_per_principal=LIMIT))
        run_id = await node.created()
        opened, refused, active = 0, [], 0

        async def follow() -> None:
            nonlocal opened, active
            answer = await node.get(f"/v1/runs/{run_id}/events")
            if answer.status_code == 200:
                opened += 1
            else:
                refused.append(answer)

        async with anyio.create_task_group() as group:
            for _ in range(MANY):
                group.start_soon(follow)
            with anyio.fail_after(30):
                while len(refused) < MANY - LIMIT:
                    await anyio.lowlevel.checkpoint()
            # Those that are open end with their run.
            await node.cancel(run_id)
        again = await node.get(f"/v1/runs/{run_id}/events")

    assert (opened, len(refused)) == (LIMIT, MANY - LIMIT)
    assert again.status_code == 200, "places are given back"
    assert_told(refused, "concurrency_limited")


# Stack B.


def chat(http: httpx.AsyncClient, who: str = "acme", *, sent: Mapping[str, str] | None = None, **more: Any) -> Any:
    body = {"model": "m-1", "messages": [{"role": "user", "content": "hello"}], **more}
    headers = {"authorization": f"Bearer {who}", "x-correlation-id": uuid.uuid4().hex} | dict(sent or {})
    return http.post("/v1/chat/completions", json=body, headers=headers)


async def together(ask: Any) -> list[httpx.Response]:
    answers: list[httpx.Response] = []

    async def one() -> None:
        answers.append(await ask())

    async with anyio.create_task_group() as group:
        for _ in range(MANY):
            group.start_soon(one)
    return answers


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    found = [answer.status_code for answer in answers]
    return {status: found.count(status) for status in sorted(set(found))}


def assert_told(answers: list[httpx.Response], code: str) -> None:
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {code}
    assert all(answer.json()["error"]["retryable"] for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.headers["x-should-retry"] for answer in refused} == {"true"}


async def test_of_forty_requests_at_once_the_gateway_lets_as_many_in_as_the_tenant_may_send() -> None:
    async with stack_b(entitled={"requests_per_minute": LIMIT}) as node:
        answers = await together(lambda: chat(node.http, model="agentos-demo"))

    assert statuses(answers) == {200: LIMIT, 429: MANY - LIMIT}
    assert_told(answers, "rate_limited")


async def test_of_forty_streamed_answers_at_once_the_gateway_begins_as_many_as_the_tenant_may_have() -> None:
    backend = Counting()
    async with stack_b(backend, entitled={"max_model_streams": LIMIT}) as node:
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await chat(node.http, stream=True))

        async with anyio.create_task_group() as group:
            for _ in range(MANY):
                group.start_soon(one)
            with anyio.fail_after(30):
                while len(answers) < MANY - LIMIT or backend.active < LIMIT:
                    await anyio.lowlevel.checkpoint()
            backend.let_go.set()
        again = await chat(node.http, stream=True)
        whole = await chat(node.http)

    assert backend.max_active == LIMIT
    assert statuses(answers) == {200: LIMIT, 429: MANY - LIMIT}
    assert (again.status_code, whole.status_code) == (200, 200), "places are given back, and whole answers need none"
    assert_told(answers, "concurrency_limited")


async def test_denied_requests_are_counted_by_the_gateway_and_fill_no_audit() -> None:
    async with stack_b(entitled={"requests_per_minute": LIMIT}) as node:
        answers = [await chat(node.http, "reader") for _ in range(MANY)]
        noted = await node.deps.request_log.recent(replace(ACME, scopes=frozenset({"usage:read"})), limit=MANY)

    assert statuses(answers) == {403: LIMIT, 429: MANY - LIMIT}
    assert [(one.code, one.denied) for one in noted.items] == [("insufficient_scope", True)]


@pytest.mark.parametrize("header", ["x-step-key", "x-stainless-retry-count"])
async def test_of_forty_that_follow_one_call_as_many_are_let_in_as_the_tenant_may_have(header: str) -> None:
    backend = Counting()
    async with stack_b(backend, entitled={"max_model_streams": LIMIT}) as node:
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await chat(node.http, stream=True, sent={header: "1"}))

        async with anyio.create_task_group() as group:
            for _ in range(MANY):
                group.start_soon(one)
            with anyio.fail_after(30):
                while len(answers) < MANY - LIMIT or not backend.active:
                    await anyio.lowlevel.checkpoint()
            backend.let_go.set()
        again = [await chat(node.http, stream=True, sent={header: "1"}) for _ in range(LIMIT + 1)]

    assert statuses(answers) == {200: LIMIT, 429: MANY - LIMIT}
    assert backend.calls == 1
    assert statuses(again) == {200: LIMIT + 1}, "places are given back"
    assert_told(answers, "concurrency_limited")


async def test_the_place_of_a_call_is_that_of_who_follows_it_alone() -> None:
    backend = Counting()
    async with stack_b(backend, entitled={"max_model_streams": 1}) as node:
        answers: list[httpx.Response] = []

        async def one(**sent: str) -> None:
            answers.append(await chat(node.http, stream=True, sent=sent))

        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as first:
                first.start_soon(partial(one, **{"x-step-key": "k:1"}))
                await backend.begun.wait()
                first.cancel_scope.cancel()
            other = await chat(node.http, stream=True, sent={"x-step-key": "k:2"})
            group.start_soon(partial(one, **{"x-step-key": "k:1"}))
            await anyio.wait_all_tasks_blocked()
            joined = await chat(node.http, stream=True, sent={"x-step-key": "k:1"})
            backend.let_go.set()

    assert (other.status_code, joined.status_code) == (429, 429)
    assert (statuses(answers), backend.calls) == ({200: 1}, 1)


@pytest.mark.parametrize("reading", [True, False])
async def test_who_still_reads_when_the_call_is_over_holds_a_place(*, reading: bool) -> None:
    """A call under a key is read to its end whether its listener takes it or not."""
    tenants = TenantCache(Directory(Entitlements(max_model_streams=1)), SystemClock())  # type: ignore[arg-type]
    seats, over = Seats(tenants), asyncio.get_running_loop().create_future()

    async def call() -> None:
        async with tenants.streaming(ACME):
            await over

    task = asyncio.create_task(call())
    async with seats.seated(ACME, task, alone=True) as seat:
        seat.reading = reading
        over.set_result(None)
        await task
        await anyio.lowlevel.checkpoint()
        if reading:
            with pytest.raises(ResourceExhausted):
                await tenants.place(ACME)
        await seat.take()
        with pytest.raises(ResourceExhausted):
            await tenants.place(ACME)
    (await tenants.place(ACME))()


class Directory:
    """Of one tenant."""

    def __init__(self, entitled: Entitlements) -> None:
        self._entitled = entitled

    async def get(self, _: AuthContext, tenant: TenantId) -> Any:
        return Tenant(id=tenant, name="", status="active", entitlements=self._entitled, created_at=SystemClock().now())


class Counting(HeldBackend):
    """Waits, in the middle of its answers, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.active = self.max_active = 0

    async def _wait(self) -> None:
        self.active += 1
        self.max_active = max(self.active, self.max_active)
        try:
            await super()._wait()
        finally:
            self.active -= 1
