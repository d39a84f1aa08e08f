"""What is read of a run in the midst of a transaction about it, and how what is wrong with it is told."""

import uuid
from collections.abc import Mapping
from typing import Any, Final

from adapters.postgres.blobs import whole
from adapters.postgres.engine import Transaction
from adapters.postgres.rows import RUN_BODIES, Row, run_of, scope_of
from adapters.postgres.statements import load
from ports.context import AuthContext
from ports.errors import Conflict, NotFound
from ports.ids import RunId, TenantId, WorkerId, uuid_of
from ports.run_state import Idempotency, Run

_SQL: Final = load("run_reads")


def run_scope(auth: AuthContext, run_id: RunId) -> dict[str, Any]:
    """Which run, as parameters; what can't be an id of ours is as absent as any other."""
    return {**scope_of(auth), "run": run_uuid(run_id)}


def run_uuid(run_id: RunId) -> uuid.UUID:
    """Raises `NotFound` for what can't be an id of ours."""
    found = uuid_of("run", run_id)
    if found is None:
        raise absent(run_id)
    return found


def key_of(auth: AuthContext, idempotency: Idempotency) -> dict[str, Any]:
    return {**scope_of(auth), "principal": auth.principal, "route": idempotency.route, "key": idempotency.key}


async def whole_run(
    transaction: Transaction, tenant: TenantId, row: Row, *, at_hand: Mapping[str, bytes] | None = None
) -> Run:
    [found] = await whole(transaction, tenant, [row], RUN_BODIES, at_hand=at_hand)
    return run_of(found)


async def loaded(transaction: Transaction, auth: AuthContext, run_id: RunId) -> Run:
    row = await transaction.row(_SQL["load"], run_scope(auth, run_id))
    if row is None:
        raise absent(run_id)
    return await whole_run(transaction, auth.tenant, row)


async def known(transaction: Transaction, auth: AuthContext, idempotency: Idempotency) -> Run | None:
    """The run that the key made. Raises `Conflict` where it was used for something else."""
    row = await transaction.row(_SQL["known"], key_of(auth, idempotency))
    if row is None:
        return None
    if row["fingerprint"] != idempotency.fingerprint:
        raise reused(idempotency)
    return await whole_run(transaction, auth.tenant, row)


async def standing(
    transaction: Transaction, tenant: TenantId, namespace: str, run: uuid.UUID, worker: WorkerId | None = None
) -> Row | None:
    """`status`, `epoch`, whether a live worker holds it, and whether `worker` is live; None when it is absent."""
    asked = {"tenant": tenant, "namespace": namespace, "run": run, "worker": worker}
    return await transaction.row(_SQL["standing"], asked)


def absent(run_id: RunId) -> NotFound:
    return NotFound(f"there is no run {run_id!r}")


def reused(idempotency: Idempotency) -> Conflict:
    return Conflict(
        f"the idempotency key {idempotency.key!r} was used for another request on this route; send a new key",
        code="idempotency_key_reused",
    )


def fenced(run_id: RunId, epoch: int, found: Row | None) -> Conflict | NotFound:
    """Why a write under `epoch` was refused; `found` is how the run stands."""
    if found is None:
        return absent(run_id)
    return Conflict(
        f"run {run_id!r} is {found['status']} at epoch {found['epoch']}; a write under epoch {epoch} is refused",
        code="fenced",
    )
