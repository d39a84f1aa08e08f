"""Long texts are looked at in other processes, so that the gateway's own goes on answering meanwhile."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from typing import Final

from adapters.presidio_pii.engine import Engine, EngineSettings, Hit
from ports.errors import Unavailable

WAITING_PER_WORKER: Final = 8
AGAIN: Final = timedelta(seconds=1)

_engines: list[Engine] = []
"""The engine of this process, if it is one of a pool."""


def _start(settings: EngineSettings) -> None:
    _engines.append(Engine(settings))


def _find(text: str) -> list[Hit]:
    return _engines[0].find(text)


class EnginePool:
    """At most `workers` processes, begun when first needed, and so many texts waiting for each."""

    def __init__(self, settings: EngineSettings, *, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._room = WAITING_PER_WORKER * workers
        self._executor: ProcessPoolExecutor | None = None

    async def find(self, text: str) -> list[Hit]:
        """Raises `Unavailable` when too many texts wait, and when the process that was at it is lost."""
        if self._room == 0:
            raise Unavailable("too many long texts wait to be checked for personal data; ask again", retry_after=AGAIN)
        if self._executor is None:
            # A forked child would share locks and sockets of a process with threads.
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(self._settings,),
            )
        executor = self._executor
        self._room -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, _find, text)
        except BrokenProcessPool:
            if self._executor is executor:
                self._executor = None
                executor.shutdown(wait=False, cancel_futures=True)
            raise Unavailable("the check for personal data was cut off; ask again", retry_after=AGAIN) from None
        finally:
            self._room += 1

    async def close(self) -> None:
        if self._executor is not None:
            await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
            self._executor = None
