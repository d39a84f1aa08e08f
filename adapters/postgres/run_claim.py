"""Taking runs: a place within the tenant's limit, and the run under a new epoch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from msgspec import Struct

from adapters.postgres.engine import Database, Transaction
from adapters.postgres.rows import by_place, packed, trace_of
from adapters.postgres.run_reads import absent, run_scope, run_uuid, standing, whole_run
from adapters.postgres.statements import load
from adapters.postgres.together import Together
from ports.context import AuthContext
from ports.errors import Conflict, NotFound, ResourceExhausted
from ports.ids import RunId, WorkerId
from ports.run_state import Run
from ports.tenant import Entitlements

_SQL: Final = load("run_claim")
_LIMITS: Final = {"max_active_runs": Entitlements().max_active_runs}
"""What a tenant has that the directory does not know."""
_PROVISIONS: Final = 2
"""Tries to make more places: whoever makes some at the same moment also takes them."""
_MOST_REST_S: Final = 0.005
"""Between two batches of claims. It is what a run waits for first, and what it waits longest for on a node with room."""
_PLACE_WAIT: Final = timedelta(seconds=1)


class _Ask(Struct, frozen=True, eq=False):
    auth: AuthContext
    run_id: RunId
    worker: WorkerId

    def row(self, place: int) -> dict[str, Any]:
        scope = {**run_scope(self.auth, self.run_id), "worker": self.worker}
        return {"place": place, **scope, **trace_of(self.auth)}


class _Taken(Struct, frozen=True):
    run: Run
    first_time: bool


class Claims:
    """`RunStatePort.claim`. Claims that come together are committed together."""

    def __init__(self, database: Database) -> None:
        self._together: Together[_Ask, _Taken] = Together(database, _claim, most_rest_s=_MOST_REST_S)

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> _Taken:
        """The run, and whether it was never claimed before."""
        run_uuid(run_id)
        return await self._together(auth.tenant, _Ask(auth, run_id, worker), order=run_id)


async def _claim(transaction: Transaction, asks: Sequence[_Ask]) -> list[_Taken | Exception]:
    taken = await _won(transaction, asks, range(len(asks)))
    refused = await _refused(transaction, asks, taken)
    for _ in range(_PROVISIONS):
        waiting = [place for place, why in refused.items() if isinstance(why, ResourceExhausted)]
        if not waiting:
            break
        # No place is free; there may be more to be made.
        for tenant, wanted in Counter(asks[place].auth.tenant for place in waiting).items():
            await transaction.rows(_SQL["provide"], {"tenant": tenant, "wanted": wanted, **_LIMITS})
        taken |= await _won(transaction, asks, waiting)
        refused = await _refused(transaction, asks, taken)
    return [taken.get(place) or refused[place] for place in range(len(asks))]


async def _won(transaction: Transaction, asks: Sequence[_Ask], places: Sequence[int]) -> dict[int, _Taken]:
    rows = packed([asks[place].row(place) for place in places])
    won = by_place(await transaction.rows(_SQL["claim"], {"asks": rows, **_LIMITS}), [ask.auth.tenant for ask in asks])
    return {
        place: _Taken(await whole_run(transaction, asks[place].auth.tenant, row), row["first_time"])
        for place, row in won.items()
    }


async def _refused(
    transaction: Transaction, asks: Sequence[_Ask], taken: Mapping[int, _Taken]
) -> dict[int, Conflict | NotFound | ResourceExhausted]:
    """Of those who got nothing, why."""
    return {place: await _refusal(transaction, ask) for place, ask in enumerate(asks) if place not in taken}


async def _refusal(transaction: Transaction, ask: _Ask) -> Conflict | NotFound | ResourceExhausted:
    """Why the run can't be claimed."""
    auth, run_id = ask.auth, ask.run_id
    found = await standing(transaction, auth.tenant, auth.namespace, run_uuid(run_id), ask.worker)
    if found is None:
        return absent(run_id)
    if not found["live"]:
        return Conflict(f"worker {ask.worker!r} has no live lease; renew it before claiming")
    if found["status"] == "queued":
        return ResourceExhausted(
            f"run {run_id!r} waits: {auth.tenant} has as many runs running as it may",
            code="concurrency_limited",
            retry_after=_PLACE_WAIT,
        )
    if found["status"] == "running":
        return Conflict(f"run {run_id!r} is held by a live worker")
    return Conflict(f"run {run_id!r} is {found['status']} and can't be claimed")
