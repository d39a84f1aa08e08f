"""What each tenant has at most of something that all tenants share."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ports.ids import TenantId


@dataclass(slots=True)
class _Share:
    free: asyncio.Semaphore
    users: int = field(default=0)
    """Those that have a place, and those that wait for one."""


class Shares:
    """`each` places per tenant, kept for tenants that use some."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._shares: dict[TenantId, _Share] = {}

    async def take(self, tenant: TenantId) -> Callable[[], None]:
        """A place, once the tenant has one free; gives it back when called, which must be once."""
        share = self._shares.setdefault(tenant, _Share(asyncio.Semaphore(self._each)))
        share.users += 1

        def leave() -> None:
            share.users -= 1
            if not share.users:
                del self._shares[tenant]

        def give_back() -> None:
            share.free.release()
            leave()

        try:
            await share.free.acquire()
        except BaseException:
            leave()
            raise
        return give_back
