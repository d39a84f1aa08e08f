"""How often a tenant may ask and how many streams it may have at once: decided in this process, from its entitlements.

Exact within a process, whatever happens at the same time: a decision is made between two awaits. It costs two look-ups and
no round trip, so that it can be asked of every request. A node has one process of each surface; where several share the
work, each takes its part (`share`), and the tenant gets no more than the whole.
"""

from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import ResourceExhausted
from ports.ids import TenantId

WINDOW_SECONDS: Final = 60.0
"""A bucket holds a minute's worth of requests, and refills evenly."""
_FULL: Final = WINDOW_SECONDS * (1 + 1e-9)
"""A billionth more: sums of steps are not exact."""
MAX_TENANTS: Final = 100_000
"""Of those that asked last; who is forgotten begins with a full bucket."""
STREAM_RETRY_AFTER: Final = timedelta(seconds=1)


def part_of(limit: int, share: int) -> int:
    """What one of `share` processes may give away of a limit; with fewer than there are processes, one each."""
    return limit // share or 1


class RequestRates:
    """One bucket a tenant: when it will be full again."""

    def __init__(self, clock: Clock, *, share: int = 1) -> None:
        self._clock = clock
        self._share = share
        self._used_until: OrderedDict[TenantId, float] = OrderedDict()

    def take(self, tenant: TenantId, per_minute: int) -> None:
        """Count a request.

        Raises:
            ResourceExhausted: `rate_limited`, with when there is room again. A refused one is not counted.
        """
        now = self._clock.monotonic()
        used_until = self._then(tenant, per_minute, now)
        if used_until > now + _FULL:
            raise ResourceExhausted(
                f"too many requests; this tenant may send {per_minute} a minute",
                retry_after=timedelta(seconds=used_until - now - WINDOW_SECONDS),
                details={"requests_per_minute": per_minute},
            )
        self._used_until[tenant] = used_until
        self._used_until.move_to_end(tenant)
        if len(self._used_until) > MAX_TENANTS:
            self._used_until.popitem(last=False)

    def has_room(self, tenant: TenantId, per_minute: int) -> bool:
        """Whether `take` would count it now."""
        now = self._clock.monotonic()
        return self._then(tenant, per_minute, now) <= now + _FULL

    def _then(self, tenant: TenantId, per_minute: int, now: float) -> float:
        """Until when its bucket is used, with one request more."""
        used_until = self._used_until.get(tenant, now)
        return (used_until if used_until > now else now) + WINDOW_SECONDS / part_of(per_minute, self._share)


class StreamPlaces:
    """The streams that are open in this process, of each tenant and each of its principals."""

    def __init__(self, *, kind: str, share: int = 1) -> None:
        """`kind` says in a refusal what they are."""
        self._kind = kind
        self._share = share
        self._open: dict[tuple[str, ...], int] = {}

    @property
    def count(self) -> int:
        return sum(number for who, number in self._open.items() if len(who) == 1)

    def take(self, auth: AuthContext, *, per_tenant: int, per_principal: int) -> Callable[[], None]:
        """Take a place; the result gives it back, once.

        Raises:
            ResourceExhausted: `concurrency_limited`, there is none.
        """
        tenant, principal = (auth.tenant,), (auth.tenant, auth.principal)
        theirs, own = self._open.get(tenant, 0), self._open.get(principal, 0)
        if theirs >= part_of(per_tenant, self._share) or own >= part_of(per_principal, self._share):
            raise ResourceExhausted(
                f"too many open {self._kind}; the caps are {per_principal} per principal, {per_tenant} per tenant",
                code="concurrency_limited",
                retry_after=STREAM_RETRY_AFTER,
                details={"per_principal": per_principal, "per_tenant": per_tenant},
            )
        self._open[tenant], self._open[principal] = theirs + 1, own + 1
        taken = True

        def give_back() -> None:
            nonlocal taken
            if taken:
                taken = False
                for who in (tenant, principal):
                    self._open[who] -= 1
                    if not self._open[who]:
                        del self._open[who]

        return give_back
