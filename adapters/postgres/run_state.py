"""RunStatePort over PostgreSQL: every change of a run is one short, fenced transaction."""

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, Final

import asyncpg
import msgspec

from adapters.postgres.blobs import Outgoing, whole
from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.journal import step_rows, usage_of
from adapters.postgres.rows import (
    RUN_BODIES,
    STEP_BODIES,
    Row,
    packed,
    packed_or_null,
    page_size,
    position,
    positive,
    run_of,
    scope_of,
    step_of,
    trace_of,
)
from adapters.postgres.signals import QUEUE
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict, NotFound, ResourceExhausted
from ports.ids import RunId, WorkerId, minted, uuid_of
from ports.messages import Page, Usage
from ports.run_rules import (
    RESOLVED_STATUS,
    check_change,
    check_fork,
    resolved_event,
    resolved_fault,
    unforkable,
    unresolvable,
)
from ports.run_state import (
    MAX_PAGE,
    TERMINAL,
    Appended,
    Change,
    Created,
    Idempotency,
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
)
from ports.tenant import Entitlements

_SQL: Final = load("run_state")
_CAPABILITIES: Final = RunStateCapabilities(durable=True)
_CURSOR: Final = "runs"
_STEP_KEY: Final = "steps_pkey"
_IDEMPOTENCY_KEY: Final = "idempotency_pkey"
_UNKNOWN: Final = Entitlements()
"""What a tenant has that the directory does not know."""
_CREATIONS: Final = {"runs_per_minute": _UNKNOWN.runs_per_minute, "max_queued_runs": _UNKNOWN.max_queued_runs}
_ACTIVE: Final = {"max_active_runs": _UNKNOWN.max_active_runs}
# A creation takes one of several stripes of its tenant's rate and backlog, and may come second there. Each time somebody
# else came first, so this many in a row are a tenant at its limit.
_ATTEMPTS: Final = 20
_BACKLOG_WAIT: Final = timedelta(seconds=5)
_PLACE_WAIT: Final = timedelta(seconds=1)


class PostgresRunState:
    """Satisfies `RunStatePort`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def capabilities(self) -> RunStateCapabilities:
        return _CAPABILITIES

    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        outgoing = Outgoing()
        asked = {
            **_key_of(auth, new.idempotency),
            **trace_of(auth),
            "fingerprint": new.idempotency.fingerprint,
            "agent_id": new.agent_id,
            "agent_version": new.agent_version,
            "agent_digest": new.agent_digest,
            "requester": packed(auth),
            "input": outgoing.packed(new.input),
            "context": outgoing.packed(new.context),
            "tool_allowlist": packed_or_null(new.tool_allowlist),
            "session_id": new.session_id,
            "deadline": new.deadline,
            "data": packed({"agent_id": new.agent_id}),
        }
        return await self._admitted("create", auth, asked, new.idempotency, outgoing)

    async def _admitted(
        self,
        statement: str,
        auth: AuthContext,
        asked: dict[str, Any],
        idempotency: Idempotency,
        outgoing: Outgoing | None = None,
    ) -> Created:
        """What a statement makes that needs admission, or made when its key was new."""
        for _ in range(_ATTEMPTS):
            with suppress(_NotMade):
                return Created(run=await self._made(statement, auth, {**asked, **_CREATIONS}, outgoing), created=True)
            async with self._database.transaction(auth.tenant) as transaction:
                if (known := await _known(transaction, auth, idempotency)) is not None:
                    return Created(run=known, created=False)
                if (refusal := await _refusal(transaction, auth)) is not None:
                    raise refusal
        raise _too_fast(_PLACE_WAIT)

    async def _made(self, statement: str, auth: AuthContext, asked: dict[str, Any], outgoing: Outgoing | None) -> Run:
        async with self._database.transaction(auth.tenant) as transaction:
            if (made := await transaction.row(_SQL[statement], asked)) is None:
                raise _NotMade
            if outgoing is None:
                return await _whole_run(transaction, auth, made)
            await outgoing.keep(transaction, auth.tenant, made["id"])
            return await _whole_run(transaction, auth, made, at_hand=outgoing.bodies)

    async def recall(self, auth: AuthContext, idempotency: Idempotency) -> Run | None:
        async with self._database.transaction(auth.tenant) as transaction:
            return await _known(transaction, auth, idempotency)

    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        auth.require(RUNS_ANY_TENANT)
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["renew"], {"worker": worker, "duration": positive(duration)})
        return Renewal(cancel_requested=frozenset(RunId(minted("run", row["id"])) for row in rows))

    async def retire(self, auth: AuthContext, worker: WorkerId) -> None:
        auth.require(RUNS_ANY_TENANT)
        async with self._database.transaction(auth.tenant) as transaction:
            await transaction.rows(_SQL["retire"], {"worker": worker})

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        asked = {**_run_of(auth, run_id), "worker": worker, **_ACTIVE}
        async with self._database.transaction(auth.tenant) as transaction:
            won = await transaction.row(_SQL["claim"], {**asked, **trace_of(auth)})
            if won is None:
                await _check_claimable(transaction, run_id, asked)
                # No place is free; there may be more to be made.
                await transaction.rows(_SQL["provide"], asked)
                won = await transaction.row(_SQL["claim"], {**asked, **trace_of(auth)})
            if won is None:
                await _check_claimable(transaction, run_id, asked)
                raise _no_room(auth, run_id)
            run = await _whole_run(transaction, auth, won)
        if won["first_time"]:
            self._database.signals.tell(run_id)
        return run

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        check_change(change)
        scope = _run_of(auth, run_id)
        outgoing = Outgoing()
        try:
            intents, results = step_rows(change.steps, outgoing)
        except Conflict:
            # Whose write is fenced learns that first: what else is wrong with it does not matter any more.
            await self._check_fence(auth, run_id, epoch)
            raise
        asked = {
            **scope,
            **trace_of(auth),
            **_movement(change, outgoing),
            "epoch": epoch,
            "intents": packed(intents),
            "results": packed(results),
        }
        async with self._database.transaction(auth.tenant) as transaction:
            try:
                moved = await transaction.row(_SQL["append"], asked)
            except asyncpg.UniqueViolationError as error:
                if error.constraint_name == _STEP_KEY:
                    raise Conflict(f"a step of run {run_id!r} has an intent already") from error
                raise
            if moved is None:
                raise _fenced(run_id, epoch, await transaction.row(_SQL["standing"], {**scope, "worker": None}))
            if moved["results"] != len(results):
                raise Conflict(f"a step of run {run_id!r} has no intent, or has a result already")
            await outgoing.keep(transaction, auth.tenant, scope["run"])
        if change.events:
            self._database.signals.tell(run_id)
        if moved["made_room"]:
            self._database.signals.tell(QUEUE)
        return Appended(last_sequence=moved["last_sequence"], cancel_requested=moved["cancel_requested"])

    async def release(self, auth: AuthContext, run_id: RunId, epoch: int, *, troubled: bool = False) -> None:
        scope = _run_of(auth, run_id)
        async with self._database.transaction(auth.tenant) as transaction:
            if await transaction.row(_SQL["release"], {**scope, "epoch": epoch, "troubled": int(troubled)}) is None:
                raise _fenced(run_id, epoch, await transaction.row(_SQL["standing"], {**scope, "worker": None}))

    async def _check_fence(self, auth: AuthContext, run_id: RunId, epoch: int) -> None:
        async with self._database.transaction(auth.tenant) as transaction:
            standing = await transaction.row(_SQL["standing"], {**_run_of(auth, run_id), "worker": None})
        if standing is None or (standing["status"], standing["epoch"]) != ("running", epoch):
            raise _fenced(run_id, epoch, standing)

    async def load(self, auth: AuthContext, run_id: RunId) -> Run:
        async with self._database.transaction(auth.tenant) as transaction:
            return await _loaded(transaction, auth, run_id)

    async def steps(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_PAGE
    ) -> tuple[Step, ...]:
        asked = {**_run_of(auth, run_id), "after": position(after), "limit": page_size(limit, MAX_PAGE)}
        async with self._database.transaction(auth.tenant) as transaction:
            found = await transaction.rows(_SQL["steps"], asked)
            rows = await whole(transaction, auth.tenant, found, STEP_BODIES)
        if not rows:
            raise _absent(run_id)
        return tuple(step_of(row) for row in rows if row["n"] is not None)

    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]:
        size = page_size(limit, MAX_PAGE)
        before = None if cursor is None else decode_cursor(_CURSOR, cursor, tuple[uuid.UUID])[0]
        asked = {
            **scope_of(auth),
            "before": before,
            "status": where.status,
            "agent_id": where.agent_id,
            "limit": size + 1,
        }
        async with self._database.transaction(auth.tenant) as transaction:
            found = await transaction.rows(_SQL["list"], asked)
            rows = await whole(transaction, auth.tenant, found, RUN_BODIES)
        more = len(rows) > size
        return Page(
            items=tuple(run_of(row) for row in rows[:size]),
            next_cursor=encode_cursor(_CURSOR, (uuid.UUID(int=rows[size - 1]["id"].int),)) if more else None,
        )

    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        asked = {
            **_run_of(auth, run_id),
            **trace_of(auth),
            "principal": auth.principal,
            "data": packed({"reason": reason}),
        }
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["cancel"], asked)
            run = await (_whole_run(transaction, auth, row) if row is not None else _loaded(transaction, auth, run_id))
            if idempotency is not None:
                named = {**_key_of(auth, idempotency), "fingerprint": idempotency.fingerprint, "run": asked["run"]}
                await transaction.rows(_SQL["remember"], named)
                # Refuses a key that means something else, and with it the whole transaction.
                await _known(transaction, auth, idempotency)
        if row is not None and run.status in TERMINAL:
            self._database.signals.tell(run_id)
        return run

    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        check_fork(at)
        origin = Origin(run_id=run_id, step=at)
        asked = {
            **_run_of(auth, run_id),
            **_key_of(auth, idempotency),
            **trace_of(auth),
            "fingerprint": idempotency.fingerprint,
            "requester": packed(auth),
            # Beyond any journal is as far as any other place that is.
            "at": position(at),
            "no_usage": packed(Usage()),
            "lineage": packed(origin),
        }
        async with self._database.transaction(auth.tenant) as transaction:
            # Settled steps stay settled, so what can be forked now can be forked when it is admitted.
            if await transaction.row(_SQL["forkable"], asked) is None:
                if (known := await _known(transaction, auth, idempotency)) is not None:
                    return Created(run=known, created=False)
                await _loaded(transaction, auth, run_id)
                raise unforkable(origin)
        return await self._admitted("fork", auth, asked, idempotency)

    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        scope = _run_of(auth, run_id)
        fault = resolved_fault(resolution)
        outgoing = Outgoing()
        asked = {
            **scope,
            **_key_of(auth, idempotency),
            **trace_of(auth),
            "n": position(n),
            "fingerprint": idempotency.fingerprint,
            "status": RESOLVED_STATUS[resolution.decision],
            "output": outgoing.packed(resolution.output) if resolution.decision == "done" else None,
            "error": packed_or_null(fault),
            "data": outgoing.packed(resolved_event(n, resolution).data),
            "action": f"step.resolve_{resolution.decision}",
        }
        async with self._database.transaction(auth.tenant) as transaction:
            held = await transaction.row(_SQL["hold"], scope)
            if held is None:
                raise _absent(run_id)
            if (known := await _known(transaction, auth, idempotency)) is not None:
                return Resolved(run=known, resolved=False)
            try:
                moved = await transaction.row(_SQL["resolve"], asked)
            except asyncpg.UniqueViolationError as error:
                # Not this run's, or its lock had shown the key before: somebody else's request, at the same moment.
                if error.constraint_name == _IDEMPOTENCY_KEY:
                    raise _reused(idempotency) from error
                raise
            if moved is None:
                raise unresolvable(run_id, held["status"], n)
            await outgoing.keep(transaction, auth.tenant, scope["run"])
            run = await _whole_run(transaction, auth, moved)
        self._database.signals.tell(run_id)
        return Resolved(run=run, resolved=True)

    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        auth.require(RUNS_ANY_TENANT)
        asked = {"queued_for": queued_for, "limit": page_size(limit, MAX_PAGE), **_ACTIVE}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["orphans"], asked)
        return tuple(orphan_of(row) for row in rows)


def orphan_of(row: Row) -> Orphan:
    return Orphan(requester=msgspec.convert(row["requester"], AuthContext), run_id=RunId(minted("run", row["id"])))


def _run_of(auth: AuthContext, run_id: RunId) -> dict[str, Any]:
    """Which run, as parameters; what can't be an id of ours is as absent as any other."""
    found = uuid_of("run", run_id)
    if found is None:
        raise _absent(run_id)
    return {**scope_of(auth), "run": found}


def _key_of(auth: AuthContext, idempotency: Idempotency) -> dict[str, Any]:
    return {**scope_of(auth), "principal": auth.principal, "route": idempotency.route, "key": idempotency.key}


def _movement(change: Change, outgoing: Outgoing) -> dict[str, Any]:
    """What an append does to the run's own row, and the events it adds."""
    usage = usage_of(change.steps)
    return {
        "status": change.status,
        "ends": change.status in TERMINAL,
        "output": outgoing.packed_or_null(change.output),
        "error": packed_or_null(change.error),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_nanousd": usage.cost_nanousd,
        "usage_estimated": usage.estimated,
        "event_count": len(change.events),
        "events": packed(
            [
                {"place": place, "type": event.type, "data": outgoing.packed(event.data)}
                for place, event in enumerate(change.events, start=1)
            ]
        ),
    }


async def _whole_run(
    transaction: Transaction, auth: AuthContext, row: Row, *, at_hand: Mapping[str, bytes] | None = None
) -> Run:
    [found] = await whole(transaction, auth.tenant, [row], RUN_BODIES, at_hand=at_hand)
    return run_of(found)


async def _loaded(transaction: Transaction, auth: AuthContext, run_id: RunId) -> Run:
    row = await transaction.row(_SQL["load"], _run_of(auth, run_id))
    if row is None:
        raise _absent(run_id)
    return await _whole_run(transaction, auth, row)


async def _known(transaction: Transaction, auth: AuthContext, idempotency: Idempotency) -> Run | None:
    row = await transaction.row(_SQL["known"], _key_of(auth, idempotency))
    if row is None:
        return None
    if row["fingerprint"] != idempotency.fingerprint:
        raise _reused(idempotency)
    return await _whole_run(transaction, auth, row)


def _reused(idempotency: Idempotency) -> Conflict:
    return Conflict(
        f"the idempotency key {idempotency.key!r} was used for another request on this route; send a new key",
        code="idempotency_key_reused",
    )


class _NotMade(Exception):
    """A creation came to nothing: what it had taken until then is rolled back."""


async def _refusal(transaction: Transaction, auth: AuthContext) -> ResourceExhausted | None:
    """Why the tenant can't create a run now; None when it can."""
    row = await transaction.row(_SQL["refusal"], {"tenant": auth.tenant, **_CREATIONS})
    assert row is not None, "the statement always answers"
    if row["wait"] > timedelta(0):
        return _too_fast(row["wait"])
    if row["full"]:
        return ResourceExhausted(
            f"{row['queued']:,} runs of this tenant are queued, which is its limit; try again when some have started",
            code="concurrency_limited",
            retry_after=_BACKLOG_WAIT,
        )
    return None


def _too_fast(wait: timedelta) -> ResourceExhausted:
    return ResourceExhausted(
        "runs are created faster than this tenant may; try again later", code="rate_limited", retry_after=wait
    )


async def _check_claimable(transaction: Transaction, run_id: RunId, asked: dict[str, Any]) -> None:
    """Raise why the run can't be claimed, unless it is a place for it that is missing."""
    standing = await transaction.row(_SQL["standing"], asked)
    if standing is None or not standing["live"] or standing["status"] != "queued":
        raise _unclaimable(run_id, asked["worker"], standing)


def _no_room(auth: AuthContext, run_id: RunId) -> ResourceExhausted:
    return ResourceExhausted(
        f"run {run_id!r} waits: {auth.tenant} has as many runs running as it may",
        code="concurrency_limited",
        retry_after=_PLACE_WAIT,
    )


def _absent(run_id: RunId) -> NotFound:
    return NotFound(f"there is no run {run_id!r}")


def _unclaimable(run_id: RunId, worker: WorkerId, standing: Row | None) -> Conflict | NotFound:
    if standing is None:
        return _absent(run_id)
    if not standing["live"]:
        return Conflict(f"worker {worker!r} has no live lease; renew it before claiming")
    if standing["status"] in {"queued", "running"}:
        return Conflict(f"run {run_id!r} is held by a live worker")
    return Conflict(f"run {run_id!r} is {standing['status']} and can't be claimed")


def _fenced(run_id: RunId, epoch: int, standing: Row | None) -> Conflict | NotFound:
    if standing is None:
        return _absent(run_id)
    return Conflict(
        f"run {run_id!r} is {standing['status']} at epoch {standing['epoch']}; a write under epoch {epoch} is refused",
        code="fenced",
    )


@asynccontextmanager
async def open_run_state(config: PostgresConfig, _given: Given) -> AsyncIterator[RunStatePort]:
    async with open_database(config) as database:
        yield PostgresRunState(database)


SPEC: Final[AdapterSpec[PostgresConfig, RunStatePort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: _CAPABILITIES, open=open_run_state
)
