"""Runs that go on from another run's journal, and runs that go on after an operator's decision."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from observability.logs import who
from observability.metrics import Metrics
from ports.context import AuthContext
from ports.errors import Conflict, ResourceExhausted, Unavailable
from ports.ids import RunId
from ports.queue import QueuePort
from ports.run_state import Created, Idempotency, Resolution, Run, RunStatePort, RunStatus, Step, StepStatus
from stack_a.runs.journal import read_steps
from stack_a.runs.shed import Shedder
from stack_a.runs.start import hint

logger = logging.getLogger("agentos.runs")

_INSTEAD_OF_RETRY: Final[Mapping[RunStatus, str]] = {
    "succeeded": "to go on from one of its steps, fork it",
    "needs_operator": "decide about the step of unknown outcome",
}
_SETTLED: Final[frozenset[StepStatus]] = frozenset({"completed", "failed"})
"""What a fork takes over."""


class Again:
    """Retry, fork and resolve, over the run store and the queue."""

    def __init__(
        self, *, run_state: RunStatePort, queue: QueuePort, metrics: Metrics, shedder: Shedder | None = None
    ) -> None:
        """Without a `shedder` only the tenants' own limits hold."""
        self._run_state = run_state
        self._queue = queue
        self._metrics = metrics
        self._shedder = shedder

    async def retry(self, auth: AuthContext, run_id: RunId, idempotency: Idempotency) -> Created:
        """A new run that goes on where this one went wrong. Raises `Conflict` as `retry_point` does."""
        run = await self._run_state.load(auth, run_id)
        at = retry_point(run, await read_steps(self._run_state, auth, run_id))
        return await self.fork(auth, run_id, at, idempotency)

    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        try:
            created = await self._forked(auth, run_id, at, idempotency)
        except (ResourceExhausted, Unavailable) as refusal:
            self._metrics.run_refused(refusal.code)
            raise
        if created.created:
            self._metrics.run_created(auth.tenant)
            fields = {"run_id": created.run.id, "agent_id": created.run.agent_id, "step": at}
            logger.info("run.forked", extra={**who(auth), **fields})
            await hint(self._queue, auth, created.run.id, created.run.priority)
        return created

    async def _forked(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        if self._shedder is not None:
            await self._shedder.check_database()
            try:
                self._shedder.check_backlog()
            except Unavailable:
                if (earlier := await self._run_state.recall(auth, idempotency)) is None:
                    raise
                return Created(run=earlier, created=False)
        try:
            return await self._run_state.fork(auth, run_id, at, idempotency)
        except Conflict as refusal:
            if refusal.code != Conflict.default_code:
                raise
            raise unforkable(run_id, at, await read_steps(self._run_state, auth, run_id)) from refusal

    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Run:
        try:
            resolved = await self._run_state.resolve(auth, run_id, n, resolution, idempotency)
        except Conflict as refusal:
            if refusal.code != Conflict.default_code:
                raise
            run = await self._run_state.load(auth, run_id)
            raise undecidable(run, n, await read_steps(self._run_state, auth, run_id)) from refusal
        if resolved.resolved:
            logger.info("run.resolved", extra={**who(auth), "run_id": run_id, "step": n, "kind": resolution.decision})
            if resolved.run.status == "queued":
                await hint(self._queue, resolved.run.requester, run_id, resolved.run.priority)
        return resolved.run


def retry_point(run: Run, journal: Sequence[Step]) -> int:
    """After which step a retry of `run` goes on: the last one before the first without a result to build upon.

    A failed model call is no such result, because it ended the run; a failed tool is, because the model was told.

    Raises:
        Conflict: the run did not fail and was not cancelled, or a tool was called after that step that may have taken
            effect. A retry would call it again under another run's key, which even an `idempotent` one takes for another
            call.
    """
    if run.status not in {"failed", "cancelled"}:
        instead = _INSTEAD_OF_RETRY.get(run.status, "cancel it first")
        raise Conflict(f"run {run.id!r} is {run.status}; only a failed or cancelled run can be retried: {instead}")
    at = 0
    for step in journal:
        if step.n != at + 1 or not _stands(step):
            break
        at = step.n
    if repeated := [step for step in journal if step.n > at and step.kind != "model" and _may_have_acted(step)]:
        first = repeated[0]
        raise Conflict(
            f"a retry would repeat step {first.n}, a call of {first.name!r}, which may have taken effect; "
            f"if it shall be called again, fork the run after step {at}",
            details={"from_step": at},
        )
    return at


def unforkable(run_id: RunId, at: int, journal: Sequence[Step]) -> Conflict:
    """Why the run can't be forked after `at`, and after which of its steps it can."""
    last = next((n for n, step in enumerate(journal) if step.status not in _SETTLED), len(journal))
    has = {0: "no steps", 1: "1 step"}.get(len(journal), f"{len(journal)} steps")
    stops = "" if last == len(journal) else f", and step {last + 1} is {journal[last].status}"
    choice = f"0 (begins anew) to {last}" if last else "only 0 (begins anew)"
    return Conflict(
        f"run {run_id!r} can't be forked after step {at}: it has {has}{stops}; {choice} can be chosen",
        details={"steps": len(journal), "max_from_step": last},
    )


def undecidable(run: Run, n: int, journal: Sequence[Step]) -> Conflict:
    """Why nobody can decide about step `n` of the run, and about which they can."""
    if run.status != "needs_operator":
        return Conflict(f"run {run.id!r} is {run.status} and waits for no operator: there is nothing to decide")
    unknown = [step.n for step in journal if step.status == "unknown"]
    those = f"step {unknown[0]} does" if len(unknown) == 1 else f"the steps {', '.join(map(str, unknown))} do"
    return Conflict(f"step {n} of run {run.id!r} waits for no decision; {those}", details={"steps": unknown})


def _may_have_acted(step: Step) -> bool:
    return step.effect != "pure" and (step.effect != "transactional" or step.status == "completed")


def _stands(step: Step) -> bool:
    return step.status == "completed" or (step.status == "failed" and step.kind != "model")
