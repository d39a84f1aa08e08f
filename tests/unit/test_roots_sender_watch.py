"""The watch over slow senders, with a clock that the test moves."""

import asyncio
from collections.abc import Callable
from typing import Self, cast

import pytest

from deploy.roots.sender_watch import SenderWatch

WINDOW_S = 30.0
WINDOW_BYTES = 30_720


class Timer:
    def __init__(self, due: float, call: Callable[[], object]) -> None:
        self.due, self.call, self.cancelled = due, call, False

    def cancel(self) -> None:
        self.cancelled = True


class HandMovedLoop:
    """Of an event loop, the two methods that the watch uses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def pass_time(self, seconds: float) -> Self:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.due <= end and not timer.cancelled]:
            first = min(due, key=lambda timer: timer.due)
            self.timers.remove(first)
            self.now = first.due
            first.call()
        self.now = end
        return self


@pytest.fixture
def loop() -> HandMovedLoop:
    return HandMovedLoop()


@pytest.fixture
def gave_up() -> list[float]:
    """When the watch lost its patience."""
    return []


@pytest.fixture
def watch(loop: HandMovedLoop, gave_up: list[float]) -> SenderWatch:
    only_what_it_uses = cast("asyncio.AbstractEventLoop", loop)
    return SenderWatch(
        only_what_it_uses, lambda: gave_up.append(loop.now), window_s=WINDOW_S, window_bytes=WINDOW_BYTES
    )


def test_silence_ends_with_the_first_window(loop: HandMovedLoop, watch: SenderWatch, gave_up: list[float]) -> None:
    watch.expect()

    loop.pass_time(100)

    assert gave_up == [30.0]


def test_one_byte_less_than_must_come_is_too_slow(
    loop: HandMovedLoop, watch: SenderWatch, gave_up: list[float]
) -> None:
    watch.expect()
    watch.received(WINDOW_BYTES - 1)

    loop.pass_time(30)

    assert gave_up == [30.0]


def test_every_window_counts_anew(loop: HandMovedLoop, watch: SenderWatch, gave_up: list[float]) -> None:
    watch.expect()
    watch.received(10 * WINDOW_BYTES)

    loop.pass_time(100)

    assert gave_up == [60.0]


def test_nothing_is_due_between_requests(loop: HandMovedLoop, watch: SenderWatch, gave_up: list[float]) -> None:
    watch.expect()
    loop.pass_time(29)
    watch.rest()

    loop.pass_time(1_000)

    assert gave_up == []


def test_the_window_of_the_next_request_begins_with_it(
    loop: HandMovedLoop, watch: SenderWatch, gave_up: list[float]
) -> None:
    watch.expect()
    loop.pass_time(20)
    watch.rest()
    watch.expect()

    loop.pass_time(100)

    assert gave_up == [50.0]


def test_time_in_which_we_do_not_read_does_not_count(
    loop: HandMovedLoop, watch: SenderWatch, gave_up: list[float]
) -> None:
    watch.expect()
    watch.hold()
    loop.pass_time(1_000)
    assert gave_up == []

    watch.release()
    loop.pass_time(100)

    assert gave_up == [1_030.0]


def test_a_watch_that_ended_says_nothing_more(loop: HandMovedLoop, watch: SenderWatch, gave_up: list[float]) -> None:
    watch.expect()

    watch.end()

    assert all(timer.cancelled for timer in loop.timers)
    assert loop.pass_time(100).now == 100
    assert gave_up == []


def test_a_thousand_requests_in_a_window_arm_one_timer(loop: HandMovedLoop, watch: SenderWatch) -> None:
    for _ in range(1_000):
        watch.expect()
        watch.rest()

    assert len(loop.timers) == 1
