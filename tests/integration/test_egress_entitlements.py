"""The egress port over the tenants of a real database: who may go where is what its administrator last said."""

import pytest
from msgspec.structs import replace

from adapters.system_clock import SystemClock
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.roots.tools import egress_of_a_node
from deploy.roots.wiring import Choice, open_ports
from ports.context import AuthContext
from ports.egress import EgressPort
from ports.errors import PermissionDenied
from ports.tenant import Entitlements
from tests.support.postgres import cloned


async def denied_by(port: EgressPort, auth: AuthContext, url: str) -> str:
    with pytest.raises(PermissionDenied) as denial:
        await port.check(auth, url)
    return str(denial.value.details["rule"])


@pytest.mark.anyio
async def test_a_tenant_goes_where_its_entitlements_say_from_the_next_call_on() -> None:
    async with cloned() as database:
        choices = {
            "tenant": Choice(adapter="postgres", config={"dsn": database.control}),
            "egress": egress_of_a_node(""),
        }
        async with open_ports(choices, {"tenant": None, "egress": None}, clock=SystemClock()) as ports:
            only = Entitlements(egress_hosts=("127.0.0.1", "*.example.com"))
            await ports["tenant"].create(PLATFORM, ACME.tenant, name="Acme", entitlements=only)
            here, there = "http://127.0.0.1/", "http://10.0.0.1/"
            before = [await denied_by(ports["egress"], ACME, url) for url in (here, there)]
            stranger = await denied_by(ports["egress"], GLOBEX, here)

            await ports["tenant"].set_entitlements(PLATFORM, ACME.tenant, replace(only, egress_hosts=()))
            after = await denied_by(ports["egress"], ACME, here)

    # An entitlement names where a tenant may go among what is public; it makes nothing public.
    assert (before, stranger, after) == (["address", "tenant"], "tenant", "tenant")
