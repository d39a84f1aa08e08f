"""RunStatePort over PostgreSQL: every change of a run is one short, fenced transaction."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import asyncpg
import msgspec

from adapters.postgres.blobs import Outgoing, whole
from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.homes import at_homes
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
from adapters.postgres.run_append import Appends
from adapters.postgres.run_claim import Claims
from adapters.postgres.run_create import Creations
from adapters.postgres.run_reads import absent, key_of, known, loaded, reused, run_scope, whole_run
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.ids import RunId, WorkerId, minted, uuid_of
from ports.messages import Page
from ports.run_rules import (
    INTERRUPTED,
    RESOLVED_STATUS,
    check_change,
    check_fork,
    interrupted,
    resolved_event,
    resolved_fault,
    unresolvable,
)
from ports.run_state import (
    MAX_PAGE,
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
)
from ports.tenant import Entitlements

_SQL: Final = load("run_state")
_CAPABILITIES: Final = RunStateCapabilities(durable=True, transactional=True)
_CURSOR: Final = "runs"
_NEWEST: Final = uuid.UUID(int=2**128 - 1)
"""Where lists begin."""
_IDEMPOTENCY_KEY: Final = "idempotency_pkey"
_LIMITS: Final = {"max_active_runs": Entitlements().max_active_runs}
"""What a tenant has that the directory does not know."""


class PostgresRunState:
    """Satisfies `RunStatePort`."""

    def __init__(self, database: Database, *, for_leases: Database) -> None:
        self._database = database
        self._creations = Creations(database)
        self._claims = Claims(database)
        self._appends = Appends(database)
        self._for_leases = for_leases

    @property
    def capabilities(self) -> RunStateCapabilities:
        return _CAPABILITIES

    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        return await self._creations.create(auth, new)

    async def recall(self, auth: AuthContext, idempotency: Idempotency) -> Run | None:
        async with self._database.transaction(auth.tenant) as transaction:
            return await known(transaction, auth, idempotency)

    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        auth.require(RUNS_ANY_TENANT)
        # Behind a burst of other calls a worker would lose the runs it is busy with.
        async with self._for_leases.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["renew"], {"worker": worker, "duration": positive(duration)})
        asked = frozenset(RunId(minted("run", row["id"])) for row in rows if row["id"] is not None)
        return Renewal(now=rows[0]["now"], cancel_requested=asked)

    async def retire(self, auth: AuthContext, worker: WorkerId) -> None:
        auth.require(RUNS_ANY_TENANT)
        async with self._database.transaction(auth.tenant) as transaction:
            await transaction.rows(_SQL["retire"], {"worker": worker})

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        taken = await self._claims.claim(auth, run_id, worker)
        if taken.first_time:
            self._database.signals.tell(run_id)
        return taken.run

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        check_change(change)
        return await self._appends.append(auth, run_id, epoch, change)

    async def release(self, auth: AuthContext, run_id: RunId, epoch: int, *, troubled: bool = False) -> None:
        await self._appends.release(auth, run_id, epoch, troubled=troubled)

    async def load(self, auth: AuthContext, run_id: RunId) -> Run:
        async with self._database.transaction(auth.tenant) as transaction:
            return await loaded(transaction, auth, run_id)

    async def steps(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_PAGE
    ) -> tuple[Step, ...]:
        asked = {**run_scope(auth, run_id), "after": position(after), "limit": page_size(limit, MAX_PAGE)}
        async with self._database.transaction(auth.tenant) as transaction:
            found = await transaction.rows(_SQL["steps"], asked)
            rows = await whole(transaction, auth.tenant, found, STEP_BODIES)
        if not rows:
            raise absent(run_id)
        return tuple(step_of(row) for row in rows if row["n"] is not None)

    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]:
        size = page_size(limit, MAX_PAGE)
        before = _NEWEST if cursor is None else decode_cursor(_CURSOR, cursor, tuple[uuid.UUID])[0]
        asked = {
            **scope_of(auth),
            "before": before,
            "status": where.status,
            "agent_id": where.agent_id,
            "limit": size + 1,
        }
        statement = _SQL[_list_of(where)]
        if where.parent is not None:
            if (parent := uuid_of("run", where.parent)) is None:
                return Page(items=())
            statement, asked["parent"] = _SQL["children"], parent
        async with self._database.transaction(auth.tenant) as transaction:
            found = await transaction.rows(statement, asked)
            rows = await whole(transaction, auth.tenant, found, RUN_BODIES)
        more = len(rows) > size
        return Page(
            items=tuple(run_of(row) for row in rows[:size]),
            next_cursor=encode_cursor(_CURSOR, (uuid.UUID(int=rows[size - 1]["id"].int),)) if more else None,
        )

    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        scope = run_scope(auth, run_id)
        asked = {**scope, **trace_of(auth), "principal": auth.principal, "interrupted": packed(INTERRUPTED)}
        async with self._database.transaction(auth.tenant) as transaction:
            if await transaction.row(_SQL["hold"], scope) is None:
                raise absent(run_id)
            events = [
                event
                for step in await transaction.rows(_SQL["begun"], scope)
                for event in interrupted(step["n"], step["kind"], step["name"])[1]
            ]
            events.append(NewEvent(type="run.cancelled", data={"reason": reason}))
            rows = [
                {"place": place, "type": event.type, "data": packed(event.data)}
                for place, event in enumerate(events, start=1)
            ]
            told = {"event_count": len(events), "events": packed(rows)}
            row = await transaction.row(_SQL["cancel"], {**asked, **told})
            run = await (
                whole_run(transaction, auth.tenant, row) if row is not None else loaded(transaction, auth, run_id)
            )
            if idempotency is not None:
                named = {**key_of(auth, idempotency), "fingerprint": idempotency.fingerprint, "run": scope["run"]}
                await transaction.rows(_SQL["remember"], named)
                # Refuses a key that means something else, and with it the whole transaction.
                await known(transaction, auth, idempotency)
        if row is not None and run.status in TERMINAL:
            self._database.signals.tell(run_id)
        return run

    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        check_fork(at)
        return await self._creations.fork(auth, Origin(run_id=run_id, step=at), idempotency)

    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        scope = run_scope(auth, run_id)
        fault = resolved_fault(resolution)
        outgoing = Outgoing()
        asked = {
            **scope,
            **key_of(auth, idempotency),
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
                raise absent(run_id)
            if (earlier := await known(transaction, auth, idempotency)) is not None:
                return Resolved(run=earlier, resolved=False)
            try:
                moved = await transaction.row(_SQL["resolve"], asked)
            except asyncpg.UniqueViolationError as error:
                # Not this run's, or its lock had shown the key before: somebody else's request, at the same moment.
                if error.constraint_name == _IDEMPOTENCY_KEY:
                    raise reused(idempotency) from error
                raise
            if moved is None:
                raise unresolvable(run_id, held["status"], n)
            await outgoing.keep(transaction, auth.tenant, scope["run"])
            run = await whole_run(transaction, auth.tenant, moved)
        self._database.signals.tell(run_id)
        return Resolved(run=run, resolved=True)

    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        auth.require(RUNS_ANY_TENANT)
        asked = {"queued_for": queued_for, "limit": page_size(limit, MAX_PAGE), **_LIMITS}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["orphans"], asked)
        return tuple(orphan_of(row) for row in rows)

    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        scope = run_scope(auth, run_id)
        async with self._database.transaction(auth.tenant) as transaction:
            if await transaction.row(_SQL["hold"], scope) is None:
                raise absent(run_id)
            return await transaction.row(_SQL["wake"], scope) is not None

    async def adrift(self, auth: AuthContext, *, limit: int) -> tuple[Adrift, ...]:
        auth.require(RUNS_ANY_TENANT)
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["adrift"], {"limit": page_size(limit, MAX_PAGE)})
        return tuple(adrift_of(row) for row in rows)


def _list_of(where: RunFilter) -> str:
    """Which statement lists them, each by an index of its own."""
    if where.agent_id is not None:
        return "list_of_agent"
    return "list" if where.status is None else "list_of_status"


def orphan_of(row: Row) -> Orphan:
    return Orphan(requester=msgspec.convert(row["requester"], AuthContext), run_id=RunId(minted("run", row["id"])))


def adrift_of(row: Row) -> Adrift:
    run = orphan_of(row)
    return Adrift(requester=run.requester, run_id=run.run_id, due=row["due"])


@asynccontextmanager
async def open_run_state(config: PostgresConfig, _given: Given) -> AsyncIterator[RunStatePort]:
    one = msgspec.structs.replace(config, pool_size=1)
    async with open_database(config) as database, open_database(one, apart="leases") as for_leases:
        yield PostgresRunState(database, for_leases=for_leases)


SPEC: Final[AdapterSpec[PostgresConfig, RunStatePort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: _CAPABILITIES, open=at_homes(open_run_state)
)
