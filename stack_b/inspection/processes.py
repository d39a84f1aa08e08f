"""Other processes, for what takes longer than the one that answers everybody may take.

Each tenant has a line of its own and so many of its jobs under way, and lines take turns: whoever sends much waits behind
itself. A job whose client has left is under way until it ends, so that leaving frees nothing.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Final, TypeVar

from ports.errors import InvalidArgument, ResourceExhausted, Unavailable
from ports.ids import TenantId

WORKERS: Final = 1
"""Processes, begun when first needed."""
OF_A_TENANT: Final = 1
"""Jobs of one tenant under way."""
WAITING_OF_A_TENANT: Final = 8
"""Jobs of one tenant, those under way included; one more is refused with 429."""
WAITING: Final = 64
"""Jobs of all tenants together; one more is refused with 503."""
WAIT_S: Final = 60.0
"""From when a job is asked for to its result; then its caller gets 503."""
CPU_S: Final = 20.0
"""Seconds of a processor that a job may take: five times what the dearest text within `inspected_chars` was seen to."""
AGAIN: Final = timedelta(seconds=2)
NICE: Final = 10
"""How much they give way to the process that answers."""

ResultT = TypeVar("ResultT")


class _TakesTooLong(Exception):
    """A job has used up its time of the processor."""


class _Line:
    """A tenant's."""

    __slots__ = ("jobs", "place")

    def __init__(self) -> None:
        self.jobs = 0
        self.place = asyncio.Semaphore(OF_A_TENANT)


class Processes:
    def __init__(self, *, workers: int = WORKERS, wait_s: float = WAIT_S, cpu_s: float = CPU_S) -> None:
        self._workers = workers
        self._wait_s = wait_s
        self._cpu_s = cpu_s
        self._lines: dict[TenantId, _Line] = {}
        self._jobs = 0
        self._room = asyncio.Semaphore(workers)
        self._executor: ProcessPoolExecutor | None = None
        self._closed = False

    async def run(self, tenant: TenantId, job: Callable[..., ResultT], *given: Any) -> ResultT:
        """What `job` gives for `given`; all three must be such that they can be pickled.

        Raises:
            ResourceExhausted: `concurrency_limited`; the tenant has too many of them.
            InvalidArgument: `payload_too_large`; it takes too long.
            Unavailable: too many wait, it was not its turn in time, or its process was lost.
        """
        line = self._line(tenant)
        begun = False
        try:
            async with asyncio.timeout(self._wait_s):
                await line.place.acquire()
                try:
                    await self._room.acquire()
                except BaseException:
                    line.place.release()
                    raise
                begun = True
                return await self._ran(tenant, line, job, given)
        except TimeoutError:
            raise Unavailable("long texts were not looked through in time; ask again", retry_after=AGAIN) from None
        finally:
            if not begun:
                self._left(tenant, line)

    async def close(self) -> None:
        """Jobs under way are waited for, for as long as one may take."""
        self._closed = True
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown, wait=True, cancel_futures=True)

    def _line(self, tenant: TenantId) -> _Line:
        line = self._lines.get(tenant)
        if line is not None and line.jobs >= WAITING_OF_A_TENANT:
            raise ResourceExhausted(
                f"{line.jobs} requests of this tenant with long texts are being looked through or wait for it, and at most "
                f"{WAITING_OF_A_TENANT} may; ask again in a moment, or send shorter texts",
                code="concurrency_limited",
                retry_after=AGAIN,
            )
        if self._jobs >= WAITING:
            raise Unavailable("too many long texts wait to be looked through; ask again", retry_after=AGAIN)
        if line is None:
            line = self._lines[tenant] = _Line()
        line.jobs += 1
        self._jobs += 1
        return line

    def _left(self, tenant: TenantId, line: _Line) -> None:
        line.jobs -= 1
        self._jobs -= 1
        if not line.jobs:
            self._lines.pop(tenant, None)

    async def _ran(self, tenant: TenantId, line: _Line, job: Callable[..., ResultT], given: tuple[Any, ...]) -> ResultT:
        def over(ended: asyncio.Future[ResultT]) -> None:
            if not ended.cancelled():
                ended.exception()
            self._room.release()
            line.place.release()
            self._left(tenant, line)

        try:
            executor, under_way = self._submitted(job, given)
        except BaseException:
            self._room.release()
            line.place.release()
            self._left(tenant, line)
            raise
        future = asyncio.wrap_future(under_way)
        future.add_done_callback(over)
        try:
            # Whoever waits may leave; the job has its place until it ends.
            return await asyncio.shield(future)
        except BrokenProcessPool:
            self._lost(executor)
            raise Unavailable("looking through long texts was cut off; ask again", retry_after=AGAIN) from None
        except _TakesTooLong:
            raise InvalidArgument(
                f"the texts take more than {self._cpu_s:g} s to look through; send less of them at a time",
                code="payload_too_large",
            ) from None

    def _submitted(
        self, job: Callable[..., ResultT], given: tuple[Any, ...]
    ) -> tuple[ProcessPoolExecutor, Future[ResultT]]:
        executor = self._at_work()
        try:
            return executor, executor.submit(_run, self._cpu_s, job, given)
        except BrokenProcessPool:
            # Lost while nobody waited for it.
            self._lost(executor)
            executor = self._at_work()
            return executor, executor.submit(_run, self._cpu_s, job, given)

    def _at_work(self) -> ProcessPoolExecutor:
        if self._closed:
            raise Unavailable("this gateway ends; ask again", retry_after=AGAIN)
        if self._executor is None:
            # A forked child would share locks and sockets of a process with threads.
            self._executor = ProcessPoolExecutor(
                self._workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start
            )
        return self._executor

    def _lost(self, executor: ProcessPoolExecutor) -> None:
        if self._executor is executor:
            self._executor = None
            executor.shutdown(wait=False, cancel_futures=True)


# In the other process.


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, _ended)
    os.nice(NICE)
    threading.Thread(target=_with_its_parent, daemon=True).start()


def _with_its_parent() -> None:
    """A process whose parent was killed would wait for work for good."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)


def _ended(_signal: int, _frame: FrameType | None) -> None:
    raise _TakesTooLong


def _run(cpu_s: float, job: Callable[..., ResultT], given: tuple[Any, ...]) -> ResultT:
    # Of a processor, so that a busy machine makes no text too long. Patterns look for signals, too.
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        return job(*given)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
