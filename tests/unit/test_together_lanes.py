"""The lanes of calls that are committed together, down to the turn of the loop in which they end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import anyio
import anyio.lowlevel
import pytest

from adapters.postgres.crowd import CROWD, FEW, RECENT, Crowd
from adapters.postgres.engine import Database, Transaction
from adapters.postgres.together import LANES, REST, Together
from ports.ids import TenantId

ACME = TenantId("tnt_acme")
GLOBEX = TenantId("tnt_globex")

pytestmark = pytest.mark.anyio


class Instant:
    """A database that has nothing to wait for."""

    @asynccontextmanager
    async def transaction(self, *_tenants: TenantId) -> AsyncIterator[Transaction]:
        yield cast("Transaction", object())


async def test_who_asks_again_in_the_turn_in_which_all_lanes_end_is_served() -> None:
    gate = asyncio.Event()
    begun = 0

    async def act(_transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        nonlocal begun
        begun += 1
        await gate.wait()
        return list(asks)

    together: Together[str, str] = Together(cast("Database", Instant()), act)

    async def ask(times: int) -> None:
        for _ in range(times):
            await together(ACME, "first", order="")

    with anyio.fail_after(2):
        async with anyio.create_task_group() as group:
            for lane in range(LANES):
                # Only the first asks again: else the others' calls would start the lane that it needs.
                group.start_soon(ask, 2 if lane == 0 else 1)
                while begun == lane:
                    await anyio.lowlevel.checkpoint()
            gate.set()


async def test_calls_that_nobody_waits_for_gather_and_go_together() -> None:
    batches: list[list[str]] = []

    async def act(_transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        batches.append(list(asks))
        return list(asks)

    together: Together[str, str] = Together(cast("Database", Instant()), act, most=3, gather_s=0.05)

    async def ask(*words: str) -> None:
        async with anyio.create_task_group() as group:
            for word in words:
                group.start_soon(partial(together, ACME, word, order=word))
                # Each in a turn of its own: without gathering the first would have gone alone.
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()

    with anyio.fail_after(5):
        await ask("a", "b")
        # A full batch has nobody to wait for: these don't take the gathering's time.
        began = anyio.current_time()
        await ask("c", "d", "e")

    assert batches == [["a", "b"], ["c", "d", "e"]]
    assert anyio.current_time() - began < 0.05


async def test_a_kind_rests_a_few_times_as_long_as_its_last_batch_took() -> None:
    loop = asyncio.get_running_loop()
    batches: list[tuple[list[str], float]] = []
    ended_at = 0.0

    async def act(_transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        nonlocal ended_at
        batches.append((list(asks), loop.time()))
        took = asyncio.Event()
        loop.call_later(0.004, took.set)
        await took.wait()
        ended_at = ended_at or loop.time()
        return list(asks)

    together: Together[str, str] = Together(cast("Database", Instant()), act)

    with anyio.fail_after(5):
        await together(ACME, "a", order="a")
        async with anyio.create_task_group() as group:
            for word in ("b", "c"):
                group.start_soon(partial(together, ACME, word, order=word))
                # Each in a turn of its own: without the rest the first would have gone alone.
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()

    assert [asks for asks, _ in batches] == [["a"], ["b", "c"]]
    assert batches[1][1] - ended_at >= REST * 0.004


async def test_a_kind_that_may_not_rest_goes_on_at_once() -> None:
    loop = asyncio.get_running_loop()
    batches: list[list[str]] = []

    async def act(_transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        batches.append(list(asks))
        took = asyncio.Event()
        loop.call_later(0.004, took.set)
        await took.wait()
        return list(asks)

    together: Together[str, str] = Together(cast("Database", Instant()), act, most_rest_s=0.0)

    with anyio.fail_after(5):
        await together(ACME, "a", order="a")
        async with anyio.create_task_group() as group:
            for word in ("b", "c"):
                group.start_soon(partial(together, ACME, word, order=word))
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()

    assert batches == [["a"], ["b"], ["c"]]


async def test_a_tenant_waits_for_no_crowd_that_it_does_not_belong_to() -> None:
    batches: list[list[str]] = []
    gate = asyncio.Event()

    async def act(_transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        batches.append(list(asks))
        if "crowd" in asks:
            await gate.wait()
        return list(asks)

    together: Together[str, str] = Together(cast("Database", Instant()), act, most=1)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(CROWD):
                group.start_soon(partial(together, ACME, "crowd", order=""))
            while not batches:
                await anyio.lowlevel.checkpoint()
            assert await together(GLOBEX, "other", order="") == "other"
            gate.set()

    assert batches == [["crowd"], ["other"], *[["crowd"]] * (CROWD - 1)]


async def test_a_tenant_waits_for_no_rest_after_a_crowd() -> None:
    loop = asyncio.get_running_loop()

    async def act(_transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        took = asyncio.Event()
        loop.call_later(0.1 if "crowd" in asks else 0.0, took.set)
        await took.wait()
        return list(asks)

    together: Together[str, str] = Together(cast("Database", Instant()), act, most_rest_s=60.0)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(CROWD):
                group.start_soon(partial(together, ACME, "crowd", order=""))
        began = loop.time()
        await together(GLOBEX, "other", order="")

    assert loop.time() - began < REST * 0.1 / 2


async def test_a_call_that_takes_long_beside_a_crowd_holds_up_no_other_tenant() -> None:
    gates = {"crowd": asyncio.Event(), "stuck": asyncio.Event()}
    batches: list[list[str]] = []

    async def act(_transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        batches.append(list(asks))
        if asks[0] in gates:
            await gates[asks[0]].wait()
        return list(asks)

    together: Together[str, str] = Together(cast("Database", Instant()), act, most=CROWD)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(CROWD):
                group.start_soon(partial(together, ACME, "crowd", order=""))
            while not batches:
                await anyio.lowlevel.checkpoint()
            group.start_soon(partial(together, GLOBEX, "stuck", order=""))
            while ["stuck"] not in batches:
                await anyio.lowlevel.checkpoint()
            # This one comes at once, and the next when it is known that somebody takes long.
            assert await together(TenantId("tnt_initech"), "other", order="") == "other"
            assert await together(TenantId("tnt_umbrella"), "other", order="") == "other"
            for gate in gates.values():
                gate.set()


def test_a_crowd_is_one_tenant_with_many_of_the_latest_calls() -> None:
    crowd = Crowd()
    for _ in range(CROWD - 1):
        crowd.note(ACME)
    assert not crowd.is_beside(GLOBEX)
    crowd.note(ACME)
    assert crowd.is_beside(GLOBEX)
    assert not crowd.is_beside(ACME)

    for _ in range(FEW):
        crowd.note(GLOBEX)
    assert crowd.is_beside(GLOBEX)
    crowd.note(GLOBEX)
    assert not crowd.is_beside(GLOBEX)


def test_many_tenants_with_a_call_each_are_no_crowd_and_one_of_long_ago_is_forgotten() -> None:
    crowd = Crowd()
    for _ in range(CROWD):
        crowd.note(ACME)
    for number in range(RECENT):
        crowd.note(TenantId(f"tnt_{number}"))
    assert not crowd.is_beside(GLOBEX)
