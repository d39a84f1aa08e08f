"""Readers of the same page, down to the turn of the loop in which they come."""

import asyncio

import anyio
import pytest

from adapters.postgres.shared_pages import Page, SharedPages
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import PrincipalId, RunId, TenantId

ANN = AuthContext(tenant=TenantId("tnt_a"), principal=PrincipalId("usr_a"), scopes=frozenset())
RUN = RunId("run_01a1fab7c3ab7f1f9898b683d4a18ee5")

pytestmark = pytest.mark.anyio


class Reads:
    """A store that answers when told to, fails at first if told to, and counts."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.count = 0
        self.begun = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self, _auth: AuthContext, _run: RunId, _after: int) -> Page:
        self.count += 1
        self.begun.set()
        await self.may_answer.wait()
        if self.count <= self.failures:
            raise Unavailable("the store is away")
        return Page(events=(), more=False)


async def test_who_comes_while_a_read_is_under_way_joins_it() -> None:
    reads = Reads()
    pages = SharedPages(reads)

    async with asyncio.TaskGroup() as group:
        found = [group.create_task(pages.read(ANN, RUN, 3)) for _ in range(5)]
        await asyncio.sleep(0)
        reads.may_answer.set()

    assert reads.count == 1
    assert {id(task.result().page) for task in found} == {id(found[0].result().page)}


async def test_what_had_not_begun_when_it_was_joined_is_fresh_and_what_had_is_not() -> None:
    reads = Reads()
    pages = SharedPages(reads)

    async with asyncio.TaskGroup() as group:
        before = [group.create_task(pages.read(ANN, RUN, 3)) for _ in range(2)]
        await reads.begun.wait()
        during = group.create_task(pages.read(ANN, RUN, 3))
        await asyncio.sleep(0)
        reads.may_answer.set()

    assert reads.count == 1
    assert [task.result().fresh for task in (*before, during)] == [True, True, False]


async def test_who_comes_in_the_turn_in_which_a_read_ends_reads_anew() -> None:
    reads = Reads()
    reads.may_answer.set()
    pages = SharedPages(reads)

    async def a_turn_later() -> bool:
        await asyncio.sleep(0)
        return (await pages.read(ANN, RUN, 3)).fresh

    with anyio.fail_after(5):
        first = asyncio.create_task(pages.read(ANN, RUN, 3))
        second = asyncio.create_task(a_turn_later())

        assert await second is True
        assert (await first).fresh is True
    assert reads.count == 2


async def test_a_failed_read_fails_all_who_joined_and_nobody_after() -> None:
    reads = Reads(failures=1)
    pages = SharedPages(reads)
    joined = [asyncio.create_task(pages.read(ANN, RUN, 3)) for _ in range(2)]
    await asyncio.sleep(0)
    reads.may_answer.set()

    failed = await asyncio.gather(*joined, return_exceptions=True)

    assert [type(failure) for failure in failed] == [Unavailable, Unavailable]
    assert (await pages.read(ANN, RUN, 3)).fresh is True
    assert reads.count == 2
