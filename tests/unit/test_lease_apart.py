"""A lease that is kept on a thread of its own, apart from an event loop that is kept busy."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import anyio
import pytest

from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import RunId, WorkerId
from ports.run_state import Renewal
from stack_a.lease import BUSY_AT_MOST, FENCE_AFTER, LEASE, RENEW_EVERY, Lease, kept_apart
from tests.support.hasty_clock import HastyClock

pytestmark = pytest.mark.anyio

CANCELLED: Final = RunId("run_1")


class Store:
    """Knows until when each worker's lease is, and who asked on which thread."""

    def __init__(self, clock: HastyClock) -> None:
        self.clock = clock
        self.until: dict[WorkerId, float] = {}
        self.lapsed = False
        """Whether a lease ended before it was renewed."""
        self.away = False
        self.threads: set[int] = set()
        self.open = 0

    async def renew(self, _auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        self.threads.add(threading.get_ident())
        if self.away:
            raise Unavailable("away")
        now = self.clock.monotonic()
        self.lapsed |= self.until.get(worker, now) < now
        self.until[worker] = now + duration.total_seconds()
        return Renewal(now=self.clock.now() + timedelta(hours=1), cancel_requested=frozenset({CANCELLED}))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Store"]:
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1


class Attendant:
    """The worker's side: what it heard, on which thread."""

    def __init__(self) -> None:
        self.heard: list[frozenset[RunId]] = []
        self.threads: set[int] = set()
        self.news = anyio.Event()

    def __call__(self, cancel_requested: frozenset[RunId]) -> None:
        self.heard.append(cancel_requested)
        self.threads.add(threading.get_ident())
        self.news.set()
        self.news = anyio.Event()


@asynccontextmanager
async def kept(store: Store) -> AsyncIterator[tuple[Lease, Attendant]]:
    """A lease that was renewed once."""
    ids = iter(range(1, 100))
    lease, attendant = Lease(store.clock, new_id=lambda: WorkerId(f"wrk_{next(ids)}")), Attendant()
    lease.attend(attendant)
    async with anyio.create_task_group() as group:
        group.start_soon(kept_apart(store.opened), lease)
        with anyio.fail_after(10):
            await attendant.news.wait()
        yield lease, attendant
        group.cancel_scope.cancel()


def keep_busy(clock: HastyClock, at_most: timedelta, until: Callable[[], bool] = lambda: False) -> None:
    """The event loop."""
    ends = clock.monotonic() + at_most.total_seconds()
    while clock.monotonic() < ends and not until():
        clock.block(timedelta(seconds=0.2))


@pytest.fixture
def store() -> Store:
    return Store(HastyClock())


async def test_a_loop_that_is_busy_for_longer_than_a_lease_keeps_it(store: Store) -> None:
    async with kept(store) as (lease, attendant):
        keep_busy(store.clock, LEASE * 2)
        held, identity = lease.live, lease.id
        with anyio.fail_after(10):
            await attendant.news.wait()

        assert (held, identity, lease.live, lease.id) == (True, "wrk_1", True, "wrk_1")

    assert not store.lapsed
    assert threading.get_ident() not in store.threads
    assert attendant.threads == {threading.get_ident()}


async def test_what_a_renewal_tells_reaches_the_workers_loop(store: Store) -> None:
    async with kept(store) as (lease, attendant):
        ahead = lease.now() - store.clock.now()

    assert attendant.heard[0] == {CANCELLED}
    assert timedelta(minutes=55) < ahead < timedelta(minutes=65)


async def test_a_busy_loop_sees_that_the_lease_was_given_up_before_it_hears_of_it(store: Store) -> None:
    async with kept(store) as (lease, attendant):
        heard = len(attendant.heard)
        store.away = True
        keep_busy(store.clock, FENCE_AFTER * 20, until=lambda: lease.id != "wrk_1")

        assert (lease.id, lease.live, len(attendant.heard)) == ("wrk_2", False, heard)
        store.away = False
        with anyio.fail_after(10):
            while not lease.live:
                await attendant.news.wait()
        assert lease.id == "wrk_2"


async def test_a_loop_that_does_not_come_back_loses_the_lease_until_it_does(store: Store) -> None:
    async with kept(store) as (lease, attendant):
        keep_busy(store.clock, BUSY_AT_MOST * 20, until=lambda: lease.id != "wrk_1")
        given_up = lease.id
        keep_busy(store.clock, RENEW_EVERY * 5)

        assert (given_up, lease.id, "wrk_2" in store.until) == ("wrk_2", "wrk_2", False)
        with anyio.fail_after(10):
            while not lease.live:
                await attendant.news.wait()
        assert lease.id == "wrk_2"


async def test_a_loop_that_does_not_come_back_is_given_up_with_the_place_where_it_is(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(store) as (lease, _):
        keep_busy(store.clock, BUSY_AT_MOST * 20, until=lambda: lease.id != "wrk_1")

    [told] = [record for record in caplog.records if record.message == "worker.fenced_itself"]
    places = vars(told)["place"].split(" < ")
    assert "keep_busy" in [place.partition(" ")[2] for place in places]
    assert places[0].startswith("hasty_clock.py:"), "the innermost comes first: a log has room for a few"


async def test_the_thread_has_ended_and_closed_what_it_opened_when_keeping_ends(store: Store) -> None:
    before = threading.active_count()
    async with kept(store):
        opened = store.open

    assert (opened, store.open) == (1, 0)
    assert "lease" not in {thread.name for thread in threading.enumerate()}
    assert threading.active_count() <= before + 1, "the pool that waited for it may keep a thread"


async def test_a_store_that_can_not_be_opened_there_is_told_here() -> None:
    @asynccontextmanager
    async def closed() -> AsyncIterator[Store]:
        raise Unavailable("not migrated")
        yield Store(HastyClock())

    lease = Lease(HastyClock(), new_id=lambda: WorkerId("wrk_1"))
    lease.attend(Attendant())

    with anyio.fail_after(10), pytest.raises(Unavailable, match="not migrated"):
        await kept_apart(closed)(lease)
