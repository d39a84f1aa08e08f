"""A run's journal in memory, kept in step with the store, and the facts waiting for the next commit.

Consecutive facts share a commit: "model completed, step completed, next step started, tool requested" is one fenced write,
so a run of N calls costs about N + 2 commits.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import anyio
from msgspec.structs import replace

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, Unavailable
from ports.ids import RunId
from ports.memory import MemoryWrite
from ports.messages import Fault, Json
from ports.run_state import (
    MAX_PAGE,
    Appended,
    Awaited,
    Change,
    NewEvent,
    Run,
    RunStatePort,
    RunStatus,
    Step,
    StepIntent,
    StepResult,
)

_NOTHING: Final = Change()


class Journal:
    """One claimed run's journal. Parallel tool calls may use it from several tasks of one loop."""

    def __init__(
        self,
        *,
        run_state: RunStatePort,
        clock: Clock,
        auth: AuthContext,
        run: Run,
        steps: Sequence[Step],
        held: Callable[[], bool],
    ) -> None:
        """`held` is false once this worker has given the run up."""
        self._held = held
        self._run_state = run_state
        self._clock = clock
        self._auth = auth
        self._run_id: RunId = run.id
        self._epoch = run.epoch
        self._steps = {step.n: step for step in steps}
        self._pending: list[StepIntent | StepResult] = []
        self._events: list[NewEvent] = []
        self._writes: list[MemoryWrite] = []
        self._committing = anyio.Lock()
        self.news = anyio.Event()
        """Set while something waits for a commit."""
        self.sound = True
        """False after a write that failed: this journal may be behind the store or ahead of it. Read the run again."""

    @property
    def steps(self) -> list[Step]:
        return [self._steps[n] for n in sorted(self._steps)]

    def step(self, n: int) -> Step:
        return self._steps[n]

    def intend(self, intent: StepIntent, events: Sequence[NewEvent]) -> None:
        """Note an intent, unless an earlier attempt committed it already: then its events were told as well."""
        if (known := self._steps.get(intent.n)) is not None:
            if known.status != "planned":
                return
            intent = replace(intent, again=True)
        self._steps[intent.n] = _started(intent, self._epoch, self._clock.now())
        self._pending.append(intent)
        self.news.set()
        self._events.extend(events)

    def complete(self, result: StepResult, events: Sequence[NewEvent], writes: Sequence[MemoryWrite] = ()) -> None:
        """Note a result, and what becomes true with it."""
        self._steps[result.n] = replace(
            self._steps[result.n],
            status=result.status,
            output=result.output,
            error=result.error,
            usage=result.usage,
            finished_at=self._clock.now(),
        )
        self._pending.append(result)
        self.news.set()
        self._events.extend(events)
        self._writes.extend(writes)

    async def commit(
        self,
        *,
        status: RunStatus | None = None,
        waits_for: Awaited | None = None,
        output: Json = None,
        error: Fault | None = None,
        events: Sequence[NewEvent] = (),
    ) -> Appended | None:
        """Write what is pending, with `events` last. None when there was nothing to write.

        Raises:
            Conflict: `fenced`: another worker owns the run now, or soon may. Nothing was written; stop.
            Unavailable: whether it was written is unknown.
        """
        async with self._committing:
            if not self.sound:
                # The write before this one failed while we waited for it: what we build on may not be there.
                raise Unavailable("an earlier write of this run's journal failed; the run must be read again")
            if not self._held():
                raise Conflict("the worker has given up the lease it claimed this run under", code="fenced")
            self._events.extend(events)
            change = Change(
                steps=tuple(self._pending),
                events=tuple(self._events),
                status=status,
                waits_for=waits_for,
                output=output,
                error=error,
                writes=tuple(self._writes),
            )
            self._pending.clear()
            self._events.clear()
            self.news = anyio.Event()
            self._writes.clear()
            if change == _NOTHING:
                return None
            self.sound = False
            appended = await self._run_state.append(self._auth, self._run_id, self._epoch, change)
            self.sound = True
            return appended


async def read_steps(run_state: RunStatePort, auth: AuthContext, run_id: RunId) -> list[Step]:
    """The whole journal as the store has it."""
    steps: list[Step] = []
    while True:
        page = await run_state.steps(auth, run_id, after=steps[-1].n if steps else 0)
        steps.extend(page)
        if len(page) < MAX_PAGE:
            return steps


def fault_of(error: AgentOSError) -> Fault:
    return Fault(code=error.code, message=error.message, retryable=error.retryable)


def _started(intent: StepIntent, epoch: int, now: datetime) -> Step:
    return Step(
        n=intent.n,
        kind=intent.kind,
        name=intent.name,
        effect=intent.effect,
        status="started",
        input=intent.input,
        input_digest=intent.input_digest,
        epoch=epoch,
        started_at=now,
    )
