"""How often the callers of a tenant may ask, and how many event streams they may have: from its entitlements."""

from typing import Final

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import NotFound
from ports.fresh import Fresh
from ports.quota_rules import RequestRates
from ports.tenant import Entitlements, TenantDirectory

DEFAULTS: Final = Entitlements()


class Admission:
    def __init__(self, tenants: TenantDirectory | None, clock: Clock, *, share: int = 1) -> None:
        """Without a directory everybody has the defaults."""
        self._tenants = tenants
        self._rates = RequestRates(clock, share=share)
        self._entitled = Fresh(self._read, clock)

    async def admit(self, auth: AuthContext) -> None:
        """Raises `ResourceExhausted` (`rate_limited`), and what the directory raises: fail closed."""
        self._rates.take(auth.tenant, (await self._entitled.of(auth)).requests_per_minute)

    async def entitlements(self, auth: AuthContext) -> Entitlements:
        """At most as old as `ports.fresh.STALE`. Raises what the directory raises."""
        return await self._entitled.of(auth)

    async def _read(self, auth: AuthContext) -> Entitlements:
        if self._tenants is None:
            return DEFAULTS
        try:
            return (await self._tenants.get(auth, auth.tenant)).entitlements
        except NotFound:
            # Whether it may be served is the verifier's to say, and it did.
            return DEFAULTS
