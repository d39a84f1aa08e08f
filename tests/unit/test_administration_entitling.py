"""Changes of entitlements while others change them too."""

from typing import Any

import pytest

from adapters.inproc.store import store
from adapters.inproc.tenant import InprocTenants
from adapters.system_clock import SystemClock
from conformance.people import ACME, PLATFORM
from deploy.administration.entitling import TRIES, change_entitlements
from ports.context import AuthContext
from ports.errors import Conflict
from ports.ids import TenantId
from ports.tenant import Entitlements, Tenant

pytestmark = pytest.mark.anyio


class Busy(InprocTenants):
    """Somebody else is first so many times."""

    others = 0

    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        if self.others:
            self.others -= 1
            await super().set_entitlements(auth, tenant, Entitlements(max_active_runs=self.others + 1))
        return await super().set_entitlements(auth, tenant, entitlements, if_match=if_match)


async def changed(name: str, others: int, version: int | None) -> Entitlements:
    tenants = Busy(store(name), SystemClock())
    await tenants.create(PLATFORM, ACME.tenant, name="acme", entitlements=Entitlements())
    tenants.others = others
    change: dict[str, Any] = {"weight": 7}
    return (await change_entitlements(tenants, PLATFORM, ACME.tenant, change, version)).entitlements


async def test_whatever_is_there_is_read_again(request: pytest.FixtureRequest) -> None:
    assert await changed(request.node.name, TRIES - 1, None) == Entitlements(weight=7, max_active_runs=1)


@pytest.mark.parametrize(("others", "version"), [(TRIES, None), (1, 1)], ids=["too often", "a version"])
async def test_at_last_it_is_refused(request: pytest.FixtureRequest, others: int, version: int | None) -> None:
    with pytest.raises(Conflict):
        await changed(request.node.name, others, version)
