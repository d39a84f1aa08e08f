"""QueuePort in this process."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from adapters.inproc.runs import Runs
from adapters.inproc.store import InprocConfig, Signal, Store, page_size, store
from adapters.inproc.tenant import Tenants
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import QUEUE_ANY_TENANT, AuthContext
from ports.errors import Conflict, InvalidArgument
from ports.ids import TenantId
from ports.priority import DEFAULT, check_priority
from ports.queue import Delivery, Depth, QueueCapabilities, QueuePort

_CAPABILITIES: Final = QueueCapabilities(delayed_delivery=True)
_MAX_LEASED: Final = 1_000
"""Per call of `lease`."""


@dataclass(slots=True)
class Message:
    id: str
    body: bytes
    requester: AuthContext
    ready_at: datetime
    priority: int
    attempt: int = 0
    lease: str | None = None
    expires_at: datetime | None = None

    def leased(self, now: datetime) -> bool:
        return self.expires_at is not None and now < self.expires_at

    def leasable_at(self) -> datetime:
        return self.ready_at if self.expires_at is None else self.expires_at


@dataclass(slots=True)
class Messages:
    """A table of a `Store`: what is not acknowledged."""

    rows: dict[str, Message] = field(default_factory=dict)
    times: dict[TenantId, Fraction] = field(default_factory=dict)
    """Each tenant's own time: it passes faster the more the tenant is served and the less its weight."""
    time: Fraction = Fraction(0)
    """The time that has come: of the tenant served last."""
    changed: Signal = field(default_factory=Signal)


class InprocQueue:
    """Satisfies `QueuePort`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._messages = storage.table(Messages)
        self._tenants = storage.table(Tenants)
        self._runs = storage.table(Runs)
        self._clock = clock

    @property
    def capabilities(self) -> QueueCapabilities:
        return _CAPABILITIES

    async def enqueue(
        self, auth: AuthContext, body: bytes, *, not_before: datetime | None = None, priority: int = DEFAULT
    ) -> None:
        check_priority(priority)
        if len(body) > _CAPABILITIES.max_body_bytes:
            raise InvalidArgument(f"a message of {len(body)} bytes is over the limit of {_CAPABILITIES.max_body_bytes}")
        now = self._clock.now()
        self._wake(auth.tenant)
        made = Message(
            id=self._store.mint("msg", now),
            body=body,
            requester=auth,
            ready_at=max(now, not_before or now),
            priority=priority,
        )
        self._messages.rows[made.id] = made
        self._messages.changed.fire()

    async def lease(
        self,
        auth: AuthContext,
        *,
        limit: int,
        duration: timedelta,
        wait: timedelta = timedelta(0),
        idle_only: bool = False,
    ) -> list[Delivery]:
        size = page_size(limit, _MAX_LEASED)
        deadline = self._clock.now() + wait
        while True:
            now = self._clock.now()
            ready = self._in_order([one for one in self._visible(auth) if one.leasable_at() <= now])
            if QUEUE_ANY_TENANT in auth.scopes:
                due = self._in_turn(self._firsts(ready, now) if idle_only else ready, size)
            else:
                due = ready[:size]
            if taken := [self._take(one, now + duration) for one in due]:
                return taken
            if now >= deadline:
                return []
            # What is ready and was not given waits for a run of its tenant to end, which is a change of its own.
            later = (at for one in self._visible(auth) if (at := one.leasable_at()) > now)
            next_change = min(later, default=deadline)
            await self._messages.changed.wait(self._clock, min(next_change, deadline) - now)

    async def extend(self, auth: AuthContext, delivery: Delivery, duration: timedelta) -> Delivery:
        message = self._held(auth, delivery)
        message.expires_at = self._clock.now() + duration
        return _delivery(message)

    async def ack(self, auth: AuthContext, delivery: Delivery) -> None:
        if self._mine(auth, delivery.id) is not None:
            del self._messages.rows[self._held(auth, delivery).id]

    async def release(self, auth: AuthContext, delivery: Delivery, *, delay: timedelta = timedelta(0)) -> None:
        message = self._held(auth, delivery)
        message.lease = message.expires_at = None
        message.ready_at = self._clock.now() + delay
        self._messages.changed.fire()

    async def depth(self, auth: AuthContext) -> Depth:
        now = self._clock.now()
        visible = list(self._visible(auth))
        return Depth(
            ready=sum(one.leasable_at() <= now for one in visible), leased=sum(one.leased(now) for one in visible)
        )

    def _in_order(self, ready: list[Message]) -> list[Message]:
        """Each tenant's."""
        return sorted(ready, key=lambda one: (-one.priority, one.id))

    def _firsts(self, ready: list[Message], now: datetime) -> list[Message]:
        """Of each tenant that has nothing under way its first."""
        leased = {one.requester.tenant for one in self._messages.rows.values() if one.leased(now)}
        firsts = {one.requester.tenant: one for one in reversed(ready)}
        return [
            one for tenant, one in firsts.items() if tenant not in leased and self._runs.count(tenant, "running") == 0
        ]

    def _in_turn(self, ready: list[Message], size: int) -> list[Message]:
        """One after the other, the first of the tenant whose time is least and that has room for another run."""
        waiting: dict[TenantId, list[Message]] = {}
        for one in reversed(ready):
            waiting.setdefault(one.requester.tenant, []).append(one)
        room = {tenant: self._room(tenant) for tenant in waiting}
        due: list[Message] = []
        while len(due) < size and (able := [one for one in waiting if waiting[one] and room[one] > 0]):
            tenant = min(able, key=lambda one: (self._messages.times[one], one))
            due.append(waiting[tenant].pop())
            room[tenant] -= 1
            self._charge(tenant)
        return due

    def _charge(self, tenant: TenantId) -> None:
        self._messages.time = self._messages.times[tenant]
        self._messages.times[tenant] += Fraction(1, self._tenants.entitlements(tenant).weight)

    def _wake(self, tenant: TenantId) -> None:
        """A tenant that had nothing waiting starts at the time that has come: it has saved no turns up."""
        if all(one.requester.tenant != tenant for one in self._messages.rows.values()):
            own = self._messages.times.get(tenant, self._messages.time)
            self._messages.times[tenant] = max(own, self._messages.time)

    def _room(self, tenant: TenantId) -> int:
        return self._tenants.entitlements(tenant).max_active_runs - self._runs.count(tenant, "running")

    def _take(self, message: Message, until: datetime) -> Delivery:
        message.attempt += 1
        message.lease = f"{message.id}.{message.attempt}"
        message.expires_at = until
        return _delivery(message)

    def _visible(self, auth: AuthContext) -> Iterator[Message]:
        return (one for one in self._messages.rows.values() if _may_see(auth, one))

    def _mine(self, auth: AuthContext, message_id: str) -> Message | None:
        found = self._messages.rows.get(message_id)
        return found if found is not None and _may_see(auth, found) else None

    def _held(self, auth: AuthContext, delivery: Delivery) -> Message:
        message = self._mine(auth, delivery.id)
        if message is None or message.lease != delivery.lease:
            raise Conflict(
                f"the lease {delivery.lease!r} is over: its message was acknowledged, released or taken over"
            )
        return message


def _may_see(auth: AuthContext, message: Message) -> bool:
    return message.requester.tenant == auth.tenant or QUEUE_ANY_TENANT in auth.scopes


def _delivery(message: Message) -> Delivery:
    assert message.lease is not None
    assert message.expires_at is not None
    return Delivery(
        id=message.id,
        lease=message.lease,
        body=message.body,
        requester=message.requester,
        attempt=message.attempt,
        expires_at=message.expires_at,
    )


@asynccontextmanager
async def open_queue(config: InprocConfig, given: Given) -> AsyncIterator[QueuePort]:
    yield InprocQueue(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, QueuePort]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: _CAPABILITIES, open=open_queue
)
