"""Queue port: at-least-once delivery of opaque work, isolated per tenant.

Clauses (each has a test in `conformance.queue`):

* QUE-1   A message enqueued is eventually leased, with the body and requester it was enqueued with.
* QUE-2   A leased message is invisible to other callers until its lease expires.
* QUE-3   A message whose lease expired without `ack` is leased again, with `attempt` one higher.
* QUE-4   After `ack` a message is never leased again. A second `ack` of the same delivery is a no-op.
* QUE-5   `ack`, `extend` or `release` with a lease that expired and was taken over raises `Conflict`.
* QUE-6   A caller leases, counts and acknowledges its own tenant's messages only, unless it holds the scope
          `queue:any-tenant`, which workers do. Another tenant's message is to it like one acknowledged long ago.
* QUE-7   `enqueue` with a `not_before` in the future raises `Unsupported` unless `capabilities.delayed_delivery`;
          otherwise the message is not leased before that time.
* QUE-8   `extend` keeps a live lease for the given time from now.
* QUE-9   `release` makes a message leasable at once, or after `delay` where `capabilities.delayed_delivery`; its
          `attempt` still counts.
* QUE-10  `depth` counts the messages not acknowledged: `ready` to be leased, and `leased`.
* QUE-11  `lease` with `wait` returns as soon as something is ready, and empty after `wait`.
* QUE-12  A body larger than `capabilities.max_body_bytes` raises `InvalidArgument`, and nothing is enqueued.
* QUE-13  What was enqueued and not acknowledged is there for a port opened anew on the same storage.
* QUE-14  A caller with `queue:any-tenant` gets tenants' messages in turn, each tenant's oldest first where QUE-17 says no
          other: however much one tenant has waiting, another's message comes with the next batch or the one after it.
* QUE-15  While several tenants have messages waiting, what each gets is in proportion to its `weight`.
* QUE-16  A tenant that had nothing waiting comes back as an equal: it has saved no turns up, and owes none.
* QUE-17  Of one tenant's messages those of a higher `priority` come first, and of equal ones the oldest. Between tenants a
          priority changes nothing. One that is none (`ports.priority`) raises `InvalidArgument`, and nothing is enqueued.
* QUE-18  A caller with `queue:any-tenant` that asks for `idle_only` gets one message of each tenant that has nothing under
          way: no message leased and, where the adapter knows of runs, none running.
"""

from datetime import datetime, timedelta
from typing import Protocol

from msgspec import Struct

from ports import priority as priorities
from ports.context import AuthContext


class QueueCapabilities(Struct, frozen=True, kw_only=True):
    """What this adapter, as configured, can do beyond the clauses every adapter must keep."""

    durable: bool = False
    """Messages survive the end of the processes that use them. A crash of the server that keeps them may yet forget
    what was enqueued in its last moments, so a message may only be a hint at something that is known elsewhere."""
    delayed_delivery: bool = False
    max_body_bytes: int = 64 * 1024


class Delivery(Struct, frozen=True, kw_only=True):
    id: str
    lease: str
    """Names this lease of the message; another lease of the same message has another."""
    body: bytes
    requester: AuthContext
    attempt: int
    """1 for the first lease. Counted at lease, not at failure: a worker that is killed never reports one."""
    expires_at: datetime


class Depth(Struct, frozen=True, kw_only=True):
    ready: int
    leased: int


class QueuePort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many tasks."""

    @property
    def capabilities(self) -> QueueCapabilities: ...

    async def enqueue(
        self,
        auth: AuthContext,
        body: bytes,
        *,
        not_before: datetime | None = None,
        priority: int = priorities.DEFAULT,
    ) -> None:
        """Make `body` available for leasing. Returns only once it would survive what `capabilities.durable` says.

        Raises:
            InvalidArgument: `body` exceeds `capabilities.max_body_bytes`, or `priority` is none.
            Unsupported: `not_before` given, but `capabilities.delayed_delivery` is false.
        """
        ...

    async def lease(
        self,
        auth: AuthContext,
        *,
        limit: int,
        duration: timedelta,
        wait: timedelta = timedelta(0),
        idle_only: bool = False,
    ) -> list[Delivery]:
        """Up to `limit` messages, invisible to others for `duration`: the caller's own in order, or tenants in turn.

        Where the adapter knows that a tenant has as many runs running as it may, its messages wait. To a caller of
        one tenant `idle_only` says nothing.
        """
        ...

    async def extend(self, auth: AuthContext, delivery: Delivery, duration: timedelta) -> Delivery:
        """Keep the lease for `duration` from now. Raises `Conflict` when it was taken over or acknowledged."""
        ...

    async def ack(self, auth: AuthContext, delivery: Delivery) -> None:
        """The work is done: never deliver it again. Raises `Conflict` when the lease was taken over."""
        ...

    async def release(self, auth: AuthContext, delivery: Delivery, *, delay: timedelta = timedelta(0)) -> None:
        """Give it back for somebody else, now or after `delay`. Raises `Conflict` when the lease was taken over."""
        ...

    async def depth(self, auth: AuthContext) -> Depth: ...
