"""Who calls how often: whether a call should wait behind another tenant's."""

from collections import Counter, deque
from typing import Final

from ports.ids import TenantId

RECENT: Final = 32
"""Calls that are looked back upon."""
CROWD: Final = RECENT // 4
"""So many of them are a crowd, when they are of one tenant."""
FEW: Final = RECENT // 8
"""So many at most has a tenant that is none."""


class Crowd:
    """The latest calls of one kind, by tenant."""

    def __init__(self) -> None:
        self._calls: deque[TenantId] = deque()
        self._by_tenant: Counter[TenantId] = Counter()

    def note(self, tenant: TenantId) -> None:
        self._calls.append(tenant)
        self._by_tenant[tenant] += 1
        if len(self._calls) > RECENT:
            forgotten = self._calls.popleft()
            self._by_tenant[forgotten] -= 1
            if not self._by_tenant[forgotten]:
                del self._by_tenant[forgotten]

    def is_beside(self, tenant: TenantId) -> bool:
        """Whether `tenant` called little lately, and one other tenant much. Many tenants that call little are no crowd."""
        return self._by_tenant[tenant] <= FEW and max(self._by_tenant.values(), default=0) >= CROWD
