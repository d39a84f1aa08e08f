"""QueuePort over PostgreSQL: `FOR UPDATE SKIP LOCKED`, and a wake-up instead of frequent polling."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.homes import at_homes
from adapters.postgres.rows import Row, by_place, packed, page_size, positive, scope_of
from adapters.postgres.signals import QUEUE
from adapters.postgres.statements import load
from adapters.postgres.together import Together
from ports.adapter import AdapterSpec, Given
from ports.context import QUEUE_ANY_TENANT, AuthContext
from ports.errors import Conflict, InvalidArgument
from ports.ids import TenantId, minted, uuid_of
from ports.priority import DEFAULT, check_priority
from ports.queue import Delivery, Depth, QueueCapabilities, QueuePort
from ports.tenant import Entitlements

_SQL: Final = load("queue")
_CAPABILITIES: Final = QueueCapabilities(durable=True, delayed_delivery=True)
_UNKNOWN: Final = Entitlements()
"""What a tenant has that the directory does not know."""
_MAX_LEASED: Final = 1_000
"""Per call of `lease`."""
_UNFLUSHED_POOL: Final = 2
"""Connections that wait for no disk. Who takes messages enqueues few, and the other way round."""
LOOKS_APART_S: Final = 0.01
"""Between two looks of this process for messages, at least. Those for idle tenants' are apart from each other only, and on
average: two may follow at once. The first is that of a slot that has just become free, and the next message waits for none.
"""
_ENQUEUES_REST_S: Final = 0.005
"""Between two batches of enqueues at most. A run that was accepted waits for its hint before anything else."""
_ACKS_GATHER_S: Final = 0.02
"""How long an acknowledgement waits for others to share its commit: nobody waits for it."""


class PostgresQueue:
    """Satisfies `QueuePort`."""

    def __init__(self, database: Database, *, unflushed: Database) -> None:
        """`unflushed` waits for no disk. A lease that a crash of the server forgets has ended early, as with a crash of its
        holder; a message is a hint, and what it was about is found without it (ADR 0019)."""
        self._database = database
        self._look_at = {False: 0.0, True: 0.0}
        """When the next look may be, by `idle_only`: a newcomer does not wait for a look at a backlog."""
        self._unflushed = unflushed
        self._enqueues: Together[dict[str, Any], None] = Together(unflushed, _enqueue, most_rest_s=_ENQUEUES_REST_S)
        self._acks: Together[dict[str, Any], bool] = Together(database, _ack, gather_s=_ACKS_GATHER_S)

    @property
    def capabilities(self) -> QueueCapabilities:
        return _CAPABILITIES

    async def enqueue(
        self, auth: AuthContext, body: bytes, *, not_before: datetime | None = None, priority: int = DEFAULT
    ) -> None:
        check_priority(priority)
        if len(body) > _CAPABILITIES.max_body_bytes:
            raise InvalidArgument(f"a message of {len(body)} bytes is over the limit of {_CAPABILITIES.max_body_bytes}")
        row = {
            **scope_of(auth),
            "requester": packed(auth),
            "body": base64.b64encode(body).decode(),
            "not_before": not_before,
            "priority": priority,
        }
        await self._enqueues(auth.tenant, row, order="")
        self._database.signals.wake(QUEUE)

    async def lease(
        self,
        auth: AuthContext,
        *,
        limit: int,
        duration: timedelta,
        wait: timedelta = timedelta(0),
        idle_only: bool = False,
    ) -> list[Delivery]:
        asked = {"limit": page_size(limit, _MAX_LEASED), "duration": positive(duration)}
        loop = asyncio.get_running_loop()
        # Waiting is this process' affair, so it goes by its own time; what is ready, the database says.
        deadline = loop.time() + wait.total_seconds()
        with self._database.signals.waiting(QUEUE) as waiter:
            while True:
                await self._looks_apart(idle_only)
                if rows := await self._take(auth, asked, idle_only=idle_only):
                    return [_delivery(row) for row in sorted(rows, key=lambda row: (-row["priority"], row["id"].bytes))]
                if (left := deadline - loop.time()) <= 0:
                    return []
                await waiter.wait(left)

    async def extend(self, auth: AuthContext, delivery: Delivery, duration: timedelta) -> Delivery:
        tenant = _owner(auth, delivery)
        async with self._database.transaction(tenant) as transaction:
            row = await transaction.row(
                _SQL["extend"], {"tenant": tenant, **_lease_of(delivery), "duration": positive(duration)}
            )
        if row is None:
            raise _over(delivery)
        return _delivery(row)

    async def ack(self, auth: AuthContext, delivery: Delivery) -> None:
        tenant = _owner(auth, delivery)
        if await self._acks(tenant, {"tenant": tenant, **_lease_of(delivery)}, order=delivery.id):
            return
        raise _over(delivery)

    async def release(self, auth: AuthContext, delivery: Delivery, *, delay: timedelta = timedelta(0)) -> None:
        tenant = _owner(auth, delivery)
        async with self._database.transaction(tenant) as transaction:
            row = await transaction.row(_SQL["release"], {"tenant": tenant, **_lease_of(delivery), "delay": delay})
        if row is None:
            raise _over(delivery)
        self._database.signals.tell(QUEUE)

    async def depth(self, auth: AuthContext) -> Depth:
        anyone = QUEUE_ANY_TENANT in auth.scopes
        statement, asked = (_SQL["depth_any"], {}) if anyone else (_SQL["depth"], {"tenant": auth.tenant})
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(statement, asked)
        assert row is not None, "an aggregate always has a row"
        return Depth(ready=row["ready"], leased=row["leased"])

    async def _looks_apart(self, idle_only: bool) -> None:
        """A message that comes wakes everybody: who has just looked waits a moment, and finds the next one there too."""
        loop = asyncio.get_running_loop()
        early = LOOKS_APART_S if idle_only else 0.0
        if (left := self._look_at[idle_only] - early - loop.time()) > 0:
            await asyncio.sleep(left)
        self._look_at[idle_only] = max(self._look_at[idle_only], loop.time()) + LOOKS_APART_S

    async def _take(self, auth: AuthContext, asked: dict[str, Any], *, idle_only: bool) -> Sequence[Row]:
        if QUEUE_ANY_TENANT in auth.scopes:
            limits = {"max_active_runs": _UNKNOWN.max_active_runs}
            return await self._unflushed.once(_SQL["lease_idle" if idle_only else "lease_any"], {**asked, **limits})
        async with self._unflushed.transaction(auth.tenant) as transaction:
            return await transaction.rows(_SQL["lease"], {**asked, "tenant": auth.tenant})


async def _enqueue(transaction: Transaction, asks: Sequence[dict[str, Any]]) -> list[None]:
    await transaction.post(_SQL["enqueue"], packed(_placed(asks)), wake=QUEUE)
    return [None] * len(asks)


async def _ack(transaction: Transaction, asks: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether each message is gone: now, or it was before."""
    rows = await transaction.rows(_SQL["ack"], {"asks": packed(_placed(asks))})
    found = by_place(rows, [ask["tenant"] for ask in asks])
    return [found[place]["acknowledged"] or not found[place]["existed"] for place in range(len(asks))]


def _placed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"place": place, **row} for place, row in enumerate(rows)]


def _owner(auth: AuthContext, delivery: Delivery) -> TenantId:
    """In whose name the message may be touched: its own tenant's for a worker, the caller's for everybody else."""
    return delivery.requester.tenant if QUEUE_ANY_TENANT in auth.scopes else auth.tenant


def _lease_of(delivery: Delivery) -> dict[str, Any]:
    """Which lease, as parameters; ids that can't be ours name no message."""
    return {
        "message": uuid_of("msg", delivery.id) or uuid.UUID(int=0),
        "lease": uuid_of("lse", delivery.lease) or uuid.UUID(int=0),
    }


def _delivery(row: Row) -> Delivery:
    return Delivery(
        id=minted("msg", row["id"]),
        lease=minted("lse", row["lease"]),
        body=row["body"],
        requester=msgspec.convert(row["requester"], AuthContext),
        attempt=row["attempt"],
        expires_at=row["visible_at"],
    )


def _over(delivery: Delivery) -> Conflict:
    return Conflict(f"the lease {delivery.lease!r} is over: its message was acknowledged, released or taken over")


@asynccontextmanager
async def open_queue(config: PostgresConfig, _given: Given) -> AsyncIterator[QueuePort]:
    few = msgspec.structs.replace(config, pool_size=min(_UNFLUSHED_POOL, config.pool_size))
    async with (
        open_database(config) as database,
        open_database(few, apart="hints", flushed=False) as unflushed,
    ):
        yield PostgresQueue(database, unflushed=unflushed)


SPEC: Final[AdapterSpec[PostgresConfig, QueuePort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: _CAPABILITIES, open=at_homes(open_queue)
)
