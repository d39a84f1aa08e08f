"""What each tenant has at most of something that all tenants share."""

import asyncio
from weakref import WeakValueDictionary

from ports.ids import TenantId


class Shares:
    """`each` places per tenant, in one process."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._places: WeakValueDictionary[TenantId, asyncio.Semaphore] = WeakValueDictionary()
        """Of whoever has a place, or waits for one."""

    def of(self, tenant: TenantId) -> asyncio.Semaphore:
        """The tenant's places, the same for as long as anybody holds on to them."""
        return self._places.setdefault(tenant, asyncio.Semaphore(self._each))
