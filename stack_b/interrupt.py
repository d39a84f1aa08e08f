"""What ends a request's work from outside: its client left, or its time is up."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

from msgspec import Struct

from ports.errors import Unavailable

_LEEWAY_S: Final = 0.001
"""Of the loop's clock, whose timers may be early by a tick."""


def out_of_time(seconds: float) -> Unavailable:
    return Unavailable(f"the answer took longer than {seconds:g} s", code="upstream_timeout")


class Interrupted(Protocol):
    """Whose work it is: a task, or who works without one for a while and then has one."""

    def cancel(self) -> object: ...

    def cancelling(self) -> int: ...

    def uncancel(self) -> int: ...


class Interrupt(Struct, eq=False):
    """`with interrupt:` around what the current task waits for. `fire` ends that wait, and the block raises `error()`.

    As `asyncio.timeout` does it, without a timer: a cancellation by somebody else stays one.
    """

    _error: Callable[[], Exception]
    task: Interrupted | None = None
    """With the current one it is entered."""
    _before: int = 0
    fired: bool = False

    def __enter__(self) -> Self:
        self.task = asyncio.current_task()
        assert self.task is not None, "there is a task to interrupt"
        self._before = self.task.cancelling()
        return self

    def taken_over(self) -> None:
        """The current task goes on with what was done without one until now."""
        self.__enter__()
        if self.fired and self.task is not None:
            self.task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task, self.task = self.task, None
        if self.fired and task is not None and task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise self._error() from error

    def fire(self, error: Callable[[], Exception] | None = None) -> None:
        """Outside of the block it does nothing. `error`: instead of the usual one."""
        if self.task is not None and not self.fired:
            self.fired = True
            self._error = error or self._error
            self.task.cancel()


class Deadlines:
    """The same time for each of many requests. One timer serves them all: who began first is due first.

    It stays armed when nobody waits any more, rather than be set and cancelled with every request.
    """

    def __init__(self, seconds: float, late: Callable[[], Exception] | None = None) -> None:
        """`late`: what is raised when time is up, instead of `Unavailable` (`upstream_timeout`)."""
        self.seconds = seconds
        self._late = late or self._told
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due: dict[Interrupt, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Nobody is watched any more."""
        if self._timer is not None:
            self._timer.cancel()

    def begin(self, instead: "Interrupted | None" = None) -> Interrupt:
        """An interrupt of the current task, or of work without one, entered. To be handed to `end` on every way out."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        # Who has the loop that runs saves asking for it, which is a call of the system each time.
        task = instead or asyncio.current_task(loop)
        assert task is not None, "there is a task to interrupt"
        interrupt = Interrupt(self._late, task, task.cancelling())
        self._due[interrupt] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look, loop)
        return interrupt

    def end(
        self,
        interrupt: Interrupt,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Leave its block. Raises what it was fired with."""
        self._due.pop(interrupt, None)
        if kind is None and not interrupt.fired:
            interrupt.task = None
        else:
            interrupt.__exit__(kind, error, at)

    def _told(self) -> Unavailable:
        return out_of_time(self.seconds)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._due:
            interrupt, due = next(iter(self._due.items()))
            if due > loop.time() + _LEEWAY_S:
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._due[interrupt]
            interrupt.fire()


class Within:
    """A block with that time, for whoever waits in it for something."""

    __slots__ = ("_deadlines", "_interrupt")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines

    def __enter__(self) -> Interrupt:
        self._interrupt = self._deadlines.begin()
        return self._interrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._deadlines.end(self._interrupt, kind, error, at)
