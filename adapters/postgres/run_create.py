"""Making runs: admission, the idempotency key and the run, which are there together or not at all."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from msgspec import Struct

from adapters.postgres.blobs import Outgoing, keep_all
from adapters.postgres.engine import Database, Transaction
from adapters.postgres.rows import by_place, packed, packed_or_null, position, trace_of
from adapters.postgres.run_reads import key_of, known, loaded, run_scope, run_uuid, whole_run
from adapters.postgres.statements import load
from adapters.postgres.together import Apart, Together
from ports.context import AuthContext
from ports.errors import ResourceExhausted
from ports.ids import TenantId
from ports.messages import Usage
from ports.priority import check_priority
from ports.run_rules import created_event, unforkable
from ports.run_state import Created, Idempotency, NewRun, Origin, Parent, Run
from ports.tenant import Entitlements

_SQL: Final = load("run_create")
_UNKNOWN: Final = Entitlements()
"""What a tenant has that the directory does not know."""
_LIMITS: Final = {"runs_per_minute": _UNKNOWN.runs_per_minute, "max_queued_runs": _UNKNOWN.max_queued_runs}
# Creations of a batch take their tokens from one stripe of their tenant's rate, where many would rarely find room.
_MOST: Final = 16
# A creation takes one of several stripes of its tenant's rate and backlog, and may come second there. Each time somebody
# else came first, so this many in a row are a tenant at its limit.
_ATTEMPTS: Final = 20
_BACKLOG_WAIT: Final = timedelta(seconds=5)
_PLACE_WAIT: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)


class _Ask(Struct, frozen=True, eq=False):
    tenant: TenantId
    row: dict[str, Any]
    outgoing: Outgoing


class _NotMade(Exception):
    """A creation came to nothing: what it had taken until then is rolled back."""


class Creations:
    """`RunStatePort.create` and `fork`. Creations that come together are committed together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._together: Together[_Ask, Run] = Together(database, _create, most=_MOST)

    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        check_priority(new.priority)
        outgoing = Outgoing()
        named = key_of(auth, new.idempotency)
        row = {
            **named,
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
            "deadline_us": None if new.deadline is None else new.deadline // _MICROSECOND,
            "data": packed(created_event(new.agent_id, new.parent).data),
            **_line(new.parent),
            "priority": new.priority,
        }
        # Those of one key wait for each other, so keys are taken in one order everywhere.
        ask, order = _Ask(auth.tenant, row, outgoing), packed(list(named.values()))
        return await self._admitted(lambda: self._together(auth.tenant, ask, order=order), auth, new.idempotency)

    async def fork(self, auth: AuthContext, origin: Origin, idempotency: Idempotency) -> Created:
        asked = {
            **run_scope(auth, origin.run_id),
            **key_of(auth, idempotency),
            **trace_of(auth),
            **_LIMITS,
            "fingerprint": idempotency.fingerprint,
            "requester": packed(auth),
            # Beyond any journal is as far as any other place that is.
            "at": position(origin.step),
            "no_usage": packed(Usage()),
            "lineage": packed(origin),
        }
        async with self._database.transaction(auth.tenant) as transaction:
            # Settled steps stay settled, so what can be forked now can be forked when it is admitted.
            if await transaction.row(_SQL["forkable"], asked) is None:
                if (run := await known(transaction, auth, idempotency)) is not None:
                    return Created(run=run, created=False)
                await loaded(transaction, auth, origin.run_id)
                raise unforkable(origin)
        return await self._admitted(lambda: self._forked(auth.tenant, asked), auth, idempotency)

    async def _forked(self, tenant: TenantId, asked: dict[str, Any]) -> Run:
        async with self._database.transaction(tenant) as transaction:
            if (row := await transaction.row(_SQL["fork"], asked)) is None:
                raise _NotMade
            return await whole_run(transaction, tenant, row)

    async def _admitted(
        self, make: Callable[[], Awaitable[Run]], auth: AuthContext, idempotency: Idempotency
    ) -> Created:
        """What `make` makes where it is admitted, or what was made when the key was new."""
        for _ in range(_ATTEMPTS):
            with suppress(_NotMade):
                return Created(run=await make(), created=True)
            async with self._database.transaction(auth.tenant) as transaction:
                if (run := await known(transaction, auth, idempotency)) is not None:
                    return Created(run=run, created=False)
                if (refusal := await _refusal(transaction, auth)) is not None:
                    raise refusal
        raise _too_fast(_PLACE_WAIT)


def _line(parent: Parent | None) -> dict[str, Any]:
    if parent is None:
        return {"parent_id": None, "parent_step": None, "depth": 0}
    return {"parent_id": run_uuid(parent.run_id), "parent_step": parent.step, "depth": parent.depth}


async def _create(transaction: Transaction, asks: Sequence[_Ask]) -> list[Run | Exception]:
    rows = [{"place": place, **ask.row} for place, ask in enumerate(asks)]
    made = by_place(
        await transaction.rows(_SQL["create"], {"asks": packed(rows), **_LIMITS}), [ask.tenant for ask in asks]
    )
    if missing := [place for place in range(len(asks)) if place not in made]:
        # The others of a batch are not to pay for a tenant that is at its limit.
        raise _NotMade if len(missing) == len(asks) else Apart(missing)
    await keep_all(transaction, [(ask.tenant, made[place]["id"], ask.outgoing) for place, ask in enumerate(asks)])
    return [
        await whole_run(transaction, ask.tenant, made[place], at_hand=ask.outgoing.bodies)
        for place, ask in enumerate(asks)
    ]


async def _refusal(transaction: Transaction, auth: AuthContext) -> ResourceExhausted | None:
    """Why the tenant can't create a run now; None when it can."""
    row = await transaction.row(_SQL["refusal"], {"tenant": auth.tenant, **_LIMITS})
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
