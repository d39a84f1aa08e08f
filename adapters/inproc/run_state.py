"""RunStatePort in this process: the reference for what the clauses mean."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from msgspec.structs import replace

from adapters.inproc import memory
from adapters.inproc.queue import Messages
from adapters.inproc.runs import KeyScope, RunRow, Runs
from adapters.inproc.store import InprocConfig, Store, own, page_size, store
from adapters.inproc.tenant import Tenants
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict, ResourceExhausted
from ports.ids import RunId, TenantId, WorkerId
from ports.messages import Page, Usage
from ports.priority import check_priority
from ports.run_rules import (
    RESOLVED_STATUS,
    check_change,
    check_fork,
    created_event,
    forked_event,
    interrupted,
    resolved_event,
    resolved_fault,
    unforkable,
    unresolvable,
)
from ports.run_state import (
    MAX_PAGE,
    SETTLED_STEP,
    TERMINAL,
    Adrift,
    Appended,
    Change,
    Created,
    Idempotency,
    NewEvent,
    NewRun,
    Origin,
    Orphan,
    Renewal,
    Resolution,
    Resolved,
    Run,
    RunFilter,
    RunStateCapabilities,
    RunStatePort,
    Step,
    StepIntent,
    StepResult,
)

_CAPABILITIES: Final = RunStateCapabilities(transactional=True)
_CURSOR: Final = "runs"
_MINUTE: Final = timedelta(minutes=1)
_BACKLOG_WAIT: Final = timedelta(seconds=5)
_PLACE_WAIT: Final = timedelta(seconds=1)


class InprocRunState:
    """Satisfies `RunStatePort`. Every method decides and writes without an await in between."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._runs = storage.table(Runs)
        self._tenants = storage.table(Tenants)
        self._messages = storage.table(Messages)
        self._items = storage.table(memory.Items)
        self._clock = clock

    @property
    def capabilities(self) -> RunStateCapabilities:
        return _CAPABILITIES

    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        if (known := self._runs.keyed(auth, new.idempotency)) is not None:
            return Created(run=own(known.run), created=False)
        check_priority(new.priority)
        now = self._clock.now()
        self._admit(auth.tenant, now)
        run = new_run(RunId(self._store.mint("run", now)), auth, new, now)
        row = RunRow(run=run, queued_at=now)
        row.record(self._store, auth, now, created_event(new.agent_id, new.parent))
        self._runs.rows[auth.tenant, auth.namespace, run.id] = row
        self._runs.keys[KeyScope.of(auth, new.idempotency)] = (new.idempotency.fingerprint, row)
        return Created(run=own(row.run), created=True)

    async def recall(self, auth: AuthContext, idempotency: Idempotency) -> Run | None:
        known = self._runs.keyed(auth, idempotency)
        return None if known is None else own(known.run)

    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        auth.require(RUNS_ANY_TENANT)
        now = self._clock.now()
        self._runs.leases[worker] = now + duration
        held = (row.run for row in self._runs.rows.values() if row.worker == worker)
        asked = frozenset(run.id for run in held if run.cancel_requested_at is not None)
        return Renewal(now=now, cancel_requested=asked)

    async def retire(self, auth: AuthContext, worker: WorkerId) -> None:
        auth.require(RUNS_ANY_TENANT)
        self._runs.leases.pop(worker, None)

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        row = self._runs.row(auth, run_id)
        now = self._clock.now()
        run = row.run
        if not self._runs.live(worker, now):
            raise Conflict(f"worker {worker!r} has no live lease; renew it before claiming")
        if run.status not in {"queued", "running"}:
            raise Conflict(f"run {run_id!r} is {run.status} and can't be claimed")
        if self._runs.held(row, now):
            raise Conflict(f"run {run_id!r} is held by a live worker")
        if run.status == "queued" and self._full(auth.tenant):
            raise ResourceExhausted(
                f"run {run_id!r} waits: {auth.tenant} has as many runs running as it may",
                code="concurrency_limited",
                retry_after=_PLACE_WAIT,
            )
        row.run = replace(
            run,
            status="running",
            worker=worker,
            epoch=run.epoch + 1,
            started_at=run.started_at or now,
            recoveries=run.recoveries + (run.status == "running"),
        )
        if run.started_at is None:
            row.record(self._store, auth, now, NewEvent(type="run.started"))
        return own(row.run)

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        check_change(change)
        row = self._runs.row(auth, run_id)
        check_fence(row.run, epoch)
        now = self._clock.now()
        # Decided on a copy of the journal: a refused step leaves nothing behind.
        steps = dict(row.steps)
        used = row.run.usage
        for fact in change.steps:
            steps[fact.n] = next_step(steps.get(fact.n), fact, epoch=epoch, now=now)
            used = used.plus(fact.usage if isinstance(fact, StepResult) else Usage())
        for write in change.writes:
            memory.check(write)
        row.steps = steps
        for write in change.writes:
            self._items.put(auth, write, now)
        row.run = changed(replace(row.run, usage=used), change, now)
        if row.run.status != "running":
            row.run = replace(row.run, worker=None)
            # The tenant's messages may have waited for a run to end.
            self._messages.changed.fire()
        row.record(self._store, auth, now, *change.events)
        return Appended(last_sequence=row.run.last_sequence, cancel_requested=row.run.cancel_requested_at is not None)

    async def release(self, auth: AuthContext, run_id: RunId, epoch: int, *, troubled: bool = False) -> None:
        row = self._runs.row(auth, run_id)
        check_fence(row.run, epoch)
        row.run = replace(row.run, status="queued", worker=None, recoveries=row.run.recoveries + troubled)
        row.queued_at = self._clock.now()

    async def load(self, auth: AuthContext, run_id: RunId) -> Run:
        return own(self._runs.row(auth, run_id).run)

    async def steps(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_PAGE
    ) -> tuple[Step, ...]:
        journal = self._runs.row(auth, run_id).steps
        later = (journal[n] for n in sorted(journal) if n > after)
        return own(tuple(islice(later, page_size(limit, MAX_PAGE))))

    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]:
        size = page_size(limit, MAX_PAGE)
        before = None if cursor is None else decode_cursor(_CURSOR, cursor, tuple[str])[0]
        mine = [row.run for key, row in self._runs.rows.items() if key[:2] == (auth.tenant, auth.namespace)]
        mine.sort(key=lambda run: run.id, reverse=True)
        later = [run for run in mine if (before is None or run.id < before) and matches(run, where)]
        shown = tuple(later[:size])
        more = len(later) > size
        return Page(items=own(shown), next_cursor=encode_cursor(_CURSOR, (shown[-1].id,)) if more else None)

    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        row = self._runs.row(auth, run_id)
        if idempotency is not None and self._runs.keyed(auth, idempotency) is None:
            self._runs.keys[KeyScope.of(auth, idempotency)] = (idempotency.fingerprint, row)
        now = self._clock.now()
        if row.run.status == "running":
            # Also when the worker's lease has lapsed: whoever recovers the run knows what may still be at work.
            row.run = replace(row.run, cancel_requested_at=row.run.cancel_requested_at or now)
        elif row.run.status not in TERMINAL:
            row.run = replace(row.run, status="cancelled", waits_for=None, cancel_requested_at=now, finished_at=now)
            closing = close_begun(row, now)
            row.record(self._store, auth, now, *closing, NewEvent(type="run.cancelled", data={"reason": reason}))
        return own(row.run)

    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        check_fork(at)
        if (known := self._runs.keyed(auth, idempotency)) is not None:
            return Created(run=own(known.run), created=False)
        source = self._runs.row(auth, run_id)
        origin = Origin(run_id=run_id, step=at)
        if not has_results(source.steps, at):
            raise unforkable(origin)
        now = self._clock.now()
        self._admit(auth.tenant, now)
        run = forked(source, RunId(self._store.mint("run", now)), auth, origin, now)
        row = RunRow(run=run, queued_at=now)
        row.steps = {n: taken_over(source.steps[n]) for n in range(1, at + 1)}
        row.record(self._store, auth, now, forked_event(run.agent_id, origin))
        self._runs.rows[auth.tenant, auth.namespace, run.id] = row
        self._runs.keys[KeyScope.of(auth, idempotency)] = (idempotency.fingerprint, row)
        return Created(run=own(row.run), created=True)

    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        row = self._runs.row(auth, run_id)
        if (known := self._runs.keyed(auth, idempotency)) is not None:
            return Resolved(run=own(known.run), resolved=False)
        step = row.steps.get(n)
        if row.run.status != "needs_operator" or step is None or step.status != "unknown":
            raise unresolvable(run_id, row.run.status, n)
        now = self._clock.now()
        row.steps[n] = decided(step, resolution, now)
        if all(one.status != "unknown" for one in row.steps.values()):
            waited = now - (step.finished_at or now)
            ends = None if row.run.deadline_at is None else row.run.deadline_at + waited
            row.run = replace(row.run, status="queued", deadline_at=ends)
            row.waited += waited
            row.queued_at = now
        row.record(self._store, auth, now, resolved_event(n, resolution))
        self._runs.keys[KeyScope.of(auth, idempotency)] = (idempotency.fingerprint, row)
        return Resolved(run=own(row.run), resolved=True)

    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        auth.require(RUNS_ANY_TENANT)
        now = self._clock.now()
        rows = sorted(self._runs.rows.values(), key=lambda row: row.run.id)
        lost = [
            row.run
            for row in rows
            if (row.run.status == "queued" and now - row.queued_at > queued_for and not self._full(row.run.tenant))
            or (row.run.status == "running" and not self._runs.held(row, now))
        ]
        named = most_urgent(lost, page_size(limit, MAX_PAGE))
        return tuple(Orphan(requester=run.requester, run_id=run.id) for run in named)

    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        row = self._runs.row(auth, run_id)
        now = self._clock.now()
        if not may_go_on(self._runs, row.run, now):
            return False
        row.run = replace(row.run, status="queued", waits_for=None)
        row.queued_at = now
        return True

    async def adrift(self, auth: AuthContext, *, limit: int) -> tuple[Adrift, ...]:
        auth.require(RUNS_ANY_TENANT)
        now = self._clock.now()
        runs = sorted((row.run for row in self._runs.rows.values()), key=lambda run: run.id)
        found = [
            *(
                Adrift(requester=run.requester, run_id=run.id, due="wake")
                for run in runs
                if may_go_on(self._runs, run, now)
            ),
            *(
                Adrift(requester=run.requester, run_id=run.id, due="cancel")
                for run in runs
                if left_behind(self._runs, run)
            ),
        ]
        found.sort(key=lambda one: one.run_id)
        return tuple(found[: page_size(limit, MAX_PAGE)])

    def _admit(self, tenant: TenantId, now: datetime) -> None:
        """Take a token of the tenant's rate. Raises `ResourceExhausted`, having taken none, where there is no room."""
        entitled = self._tenants.entitlements(tenant)
        until = max(self._runs.used_until.get(tenant, now), now) + _MINUTE / entitled.runs_per_minute
        if until - now > _MINUTE:
            raise ResourceExhausted(
                "runs are created faster than this tenant may; try again later", retry_after=until - now - _MINUTE
            )
        if self._runs.count(tenant, "queued") >= entitled.max_queued_runs:
            raise ResourceExhausted(
                f"{entitled.max_queued_runs:,} runs of this tenant are queued, which is its limit; "
                "try again when some have started",
                code="concurrency_limited",
                retry_after=_BACKLOG_WAIT,
            )
        self._runs.used_until[tenant] = until

    def _full(self, tenant: TenantId) -> bool:
        return self._runs.count(tenant, "running") >= self._tenants.entitlements(tenant).max_active_runs


def new_run(run_id: RunId, auth: AuthContext, new: NewRun, now: datetime) -> Run:
    return Run(
        id=run_id,
        requester=auth,
        agent_id=new.agent_id,
        agent_version=new.agent_version,
        agent_digest=new.agent_digest,
        status="queued",
        input=own(new.input),
        context=own(new.context),
        tool_allowlist=new.tool_allowlist,
        session_id=new.session_id,
        created_at=now,
        deadline_at=None if new.deadline is None else now + new.deadline,
        parent=new.parent,
        priority=new.priority,
    )


def most_urgent(lost: list[Run], most: int) -> list[Run]:
    """The oldest, but in the places of a tenant's queued runs those of its queued runs that come first."""
    queued = [run for run in lost if run.status == "queued"]
    waiting = {
        run.tenant: sorted(
            (one for one in queued if one.tenant == run.tenant), key=lambda one: (-one.priority, one.id), reverse=True
        )
        for run in queued
    }
    return [waiting[run.tenant].pop() if run.status == "queued" else run for run in lost[:most]]


def may_go_on(runs: Runs, run: Run, now: datetime) -> bool:
    """Whether it waits, and for nothing any more."""
    return run.status == "waiting" and (
        run.cancel_requested_at is not None
        or (run.deadline_at is not None and run.deadline_at <= now)
        or (run.waits_for == "child" and all(child.status in TERMINAL for child in runs.children(run)))
    )


def left_behind(runs: Runs, run: Run) -> bool:
    """Whether its parent has ended, and nobody has asked it to end."""
    if run.parent is None or run.status in TERMINAL or run.cancel_requested_at is not None:
        return False
    parent = runs.rows.get((run.tenant, run.requester.namespace, run.parent.run_id))
    return parent is not None and parent.run.status in TERMINAL


def has_results(journal: dict[int, Step], at: int) -> bool:
    """Whether every step from 1 to `at` is there and has a result to build upon."""
    return all((step := journal.get(n)) is not None and step.status in SETTLED_STEP for n in range(1, at + 1))


def forked(source: RunRow, run_id: RunId, auth: AuthContext, origin: Origin, now: datetime) -> Run:
    """A new run like the one in `source` was when it was created."""
    run = source.run
    ends = None if run.deadline_at is None else now + (run.deadline_at - run.created_at - source.waited)
    return Run(
        id=run_id,
        requester=auth,
        agent_id=run.agent_id,
        agent_version=run.agent_version,
        agent_digest=run.agent_digest,
        status="queued",
        input=run.input,
        context=run.context,
        tool_allowlist=run.tool_allowlist,
        session_id=run.session_id,
        created_at=now,
        deadline_at=ends,
        forked_from=origin,
        priority=run.priority,
    )


def taken_over(step: Step) -> Step:
    return replace(step, epoch=0, usage=Usage())


def decided(step: Step, resolution: Resolution, now: datetime) -> Step:
    """The step of unknown outcome after an operator's decision."""
    return replace(
        step,
        status=RESOLVED_STATUS[resolution.decision],
        finished_at=None if resolution.decision == "retry" else now,
        output=own(resolution.output) if resolution.decision == "done" else None,
        error=resolved_fault(resolution),
    )


def close_begun(row: RunRow, now: datetime) -> list[NewEvent]:
    """Close the steps that nobody will close any more. Their events."""
    told: list[NewEvent] = []
    for n, step in sorted(row.steps.items()):
        if step.status == "started":
            result, events = interrupted(n, step.kind, step.name)
            row.steps[n] = next_step(step, result, epoch=step.epoch, now=now)
            told += events
    return told


def check_fence(run: Run, epoch: int) -> None:
    if run.status != "running" or run.epoch != epoch:
        raise Conflict(
            f"run {run.id!r} is {run.status} at epoch {run.epoch}; a write under epoch {epoch} is refused",
            code="fenced",
        )


def next_step(known: Step | None, fact: StepIntent | StepResult, *, epoch: int, now: datetime) -> Step:
    """The step after `fact`. Raises `Conflict` for a second intent, a second result, or a result without intent."""
    planned = known is not None and known.status == "planned"
    if isinstance(fact, StepIntent):
        if fact.again and not planned:
            raise Conflict(f"step {fact.n} is not planned again")
        if known is not None:
            if not fact.again:
                raise Conflict(f"step {fact.n} has an intent already")
            return replace(known, status="started", epoch=epoch, started_at=now)
        return Step(
            n=fact.n,
            kind=fact.kind,
            name=fact.name,
            effect=fact.effect,
            status="started",
            input=own(fact.input),
            input_digest=fact.input_digest,
            epoch=epoch,
            started_at=now,
        )
    if known is None or planned:
        raise Conflict(f"step {fact.n} has no intent; write the intent before the result")
    if known.status != "started":
        raise Conflict(f"step {fact.n} has a result already")
    return replace(
        known,
        status=fact.status,
        epoch=epoch,
        finished_at=now,
        output=own(fact.output),
        error=fact.error,
        usage=fact.usage,
    )


def changed(run: Run, change: Change, now: datetime) -> Run:
    """The run after the status, output and error of `change`."""
    if change.status is None:
        return run
    return replace(
        run,
        status=change.status,
        waits_for=change.waits_for,
        output=own(change.output),
        error=change.error,
        finished_at=now if change.status in TERMINAL else None,
    )


def matches(run: Run, where: RunFilter) -> bool:
    parent = None if run.parent is None else run.parent.run_id
    return (
        where.status in {None, run.status}
        and where.agent_id in {None, run.agent_id}
        and (where.parent is None or where.parent == parent)
    )


@asynccontextmanager
async def open_run_state(config: InprocConfig, given: Given) -> AsyncIterator[RunStatePort]:
    yield InprocRunState(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, RunStatePort]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: _CAPABILITIES, open=open_run_state
)
