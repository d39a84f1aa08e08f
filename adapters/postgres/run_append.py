"""A worker's writes to the runs it holds: fenced, all or nothing for each run."""

import uuid
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
from msgspec import Struct

from adapters.postgres.blobs import Outgoing, keep_all
from adapters.postgres.engine import Database, Transaction
from adapters.postgres.journal import step_rows, usage_of
from adapters.postgres.memory import remember
from adapters.postgres.rows import by_place, packed, packed_or_null, scope_of, trace_of
from adapters.postgres.run_reads import fenced, run_scope, run_uuid, standing
from adapters.postgres.signals import QUEUE
from adapters.postgres.statements import load
from adapters.postgres.together import Together
from ports.context import AuthContext
from ports.errors import Conflict
from ports.ids import RunId
from ports.memory import MemoryWrite
from ports.run_state import TERMINAL, Appended, Change

_SQL: Final = load("run_append")
_STEP_KEY: Final = "steps_pkey"


class _Ask(Struct, frozen=True, eq=False, kw_only=True):
    auth: AuthContext
    run_id: RunId
    run: uuid.UUID
    epoch: int
    row: dict[str, Any]
    results: int
    outgoing: Outgoing


class _Written(Struct, frozen=True):
    appended: Appended
    made_room: bool


class Appends:
    """`RunStatePort.append`. Those of several runs that come together are committed together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._together: Together[_Ask, _Written] = Together(database, _append)

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        run = run_uuid(run_id)
        outgoing = Outgoing()
        try:
            intents, results = step_rows(change.steps, outgoing)
        except Conflict:
            # Whose write is fenced learns that first: what else is wrong with it does not matter any more.
            await self._check_fence(auth, run_id, epoch)
            raise
        ask = _Ask(
            auth=auth,
            run_id=run_id,
            run=run,
            epoch=epoch,
            row={
                **scope_of(auth),
                "run": run,
                "epoch": epoch,
                **trace_of(auth),
                **_movement(change, outgoing),
                "intents": intents,
                "results": results,
                "events": [
                    {"number": number, "type": event.type, "data": outgoing.packed(event.data)}
                    for number, event in enumerate(change.events, start=1)
                ],
            },
            results=len(results),
            outgoing=outgoing,
        )
        if change.writes:
            written = await self._with_writes(auth, ask, change.writes)
        else:
            written = await self._together(auth.tenant, ask, order=run_id)
        if change.events:
            self._database.signals.tell(run_id)
        if written.made_room:
            self._database.signals.tell(QUEUE)
        return written.appended

    async def _with_writes(self, auth: AuthContext, ask: _Ask, writes: Sequence[MemoryWrite]) -> _Written:
        """By itself: items of memory have locks too, in another order than runs."""
        async with self._database.transaction(auth.tenant) as transaction:
            [answer] = await _append(transaction, [ask])
            if isinstance(answer, Exception):
                raise answer
            await remember(transaction, auth, writes)
        return answer

    async def release(self, auth: AuthContext, run_id: RunId, epoch: int, *, troubled: bool) -> None:
        asked = {**run_scope(auth, run_id), "epoch": epoch, "troubled": int(troubled)}
        async with self._database.transaction(auth.tenant) as transaction:
            if await transaction.row(_SQL["release"], asked) is None:
                found = await standing(transaction, auth.tenant, auth.namespace, run_uuid(run_id))
                raise fenced(run_id, epoch, found)

    async def _check_fence(self, auth: AuthContext, run_id: RunId, epoch: int) -> None:
        async with self._database.transaction(auth.tenant) as transaction:
            found = await standing(transaction, auth.tenant, auth.namespace, run_uuid(run_id))
        if found is None or (found["status"], found["epoch"]) != ("running", epoch):
            raise fenced(run_id, epoch, found)


async def _append(transaction: Transaction, asks: Sequence[_Ask]) -> list[_Written | Exception]:
    if len({ask.run for ask in asks}) < len(asks):
        # A statement can't change a row twice.
        return [answer for ask in asks for answer in await _append(transaction, [ask])]
    asked = packed([{"place": place, **ask.row} for place, ask in enumerate(asks)])
    try:
        rows = await transaction.rows(_SQL["append"], {"asks": asked})
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == _STEP_KEY:
            raise Conflict(f"a step of run {asks[0].run_id!r} has an intent already") from error
        raise
    moved = by_place(rows, [ask.auth.tenant for ask in asks])
    answers: list[_Written | Exception] = []
    for place, ask in enumerate(asks):
        row = moved.get(place)
        if row is None:
            found = await standing(transaction, ask.auth.tenant, ask.auth.namespace, ask.run)
            answers.append(fenced(ask.run_id, ask.epoch, found))
            continue
        if row["results"] != ask.results:
            raise Conflict(f"a step of run {ask.run_id!r} has no intent, or has a result already")
        appended = Appended(last_sequence=row["last_sequence"], cancel_requested=row["cancel_requested"])
        answers.append(_Written(appended, row["made_room"]))
    kept = [(ask.auth.tenant, ask.run, ask.outgoing) for place, ask in enumerate(asks) if place in moved]
    await keep_all(transaction, kept)
    return answers


def _movement(change: Change, outgoing: Outgoing) -> dict[str, Any]:
    """What an append does to the run's own row."""
    usage = usage_of(change.steps)
    return {
        "status": change.status,
        "waits_for": change.waits_for,
        "ends": change.status in TERMINAL,
        "output": outgoing.packed_or_null(change.output),
        "error": packed_or_null(change.error),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_nanousd": usage.cost_nanousd,
        "usage_estimated": usage.estimated,
        "event_count": len(change.events),
    }
