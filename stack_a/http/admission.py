"""How often the callers of a tenant may ask, and how many event streams they may have: from its entitlements."""

from collections import OrderedDict
from typing import Final

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import NotFound
from ports.ids import TenantId
from ports.quota_rules import MAX_TENANTS, RequestRates
from ports.tenant import Entitlements, TenantDirectory

KNOWN_SECONDS: Final = 2.0
"""How long entitlements are taken for true: a change of them is in force within 5 s."""
DEFAULTS: Final = Entitlements()


class Admission:
    def __init__(self, tenants: TenantDirectory | None, clock: Clock, *, share: int = 1) -> None:
        """Without a directory everybody has the defaults."""
        self._tenants = tenants
        self._clock = clock
        self._rates = RequestRates(clock, share=share)
        self._known: OrderedDict[TenantId, tuple[Entitlements, float]] = OrderedDict()

    async def admit(self, auth: AuthContext) -> None:
        """Raises `ResourceExhausted` (`rate_limited`), and what the directory raises: fail closed."""
        self._rates.take(auth.tenant, (await self._entitled(auth)).requests_per_minute)

    def streams_of(self, auth: AuthContext) -> tuple[int, int]:
        """Event streams at once, of the tenant and of each principal; of a caller that was just admitted."""
        entitlements, _ = self._known.get(auth.tenant, (DEFAULTS, 0.0))
        return entitlements.max_event_streams, entitlements.max_event_streams_per_principal

    async def _entitled(self, auth: AuthContext) -> Entitlements:
        now = self._clock.monotonic()
        known = self._known.get(auth.tenant)
        if known is not None and now - known[1] < KNOWN_SECONDS:
            return known[0]
        found = await self._read(auth)
        self._known[auth.tenant] = (found, now)
        self._known.move_to_end(auth.tenant)
        if len(self._known) > MAX_TENANTS:
            self._known.popitem(last=False)
        return found

    async def _read(self, auth: AuthContext) -> Entitlements:
        if self._tenants is None:
            return DEFAULTS
        try:
            return (await self._tenants.get(auth, auth.tenant)).entitlements
        except NotFound:
            # Whether it may be served is the verifier's to say, and it did.
            return DEFAULTS
