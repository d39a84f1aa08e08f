"""`agentos principal act-as|acting`: services of one tenant that act for others."""

import argparse

from msgspec import Struct

from deploy.cli.access import principal_id, tenant_id, with_directory
from deploy.cli.io import FINE, Io
from deploy.internal import Directory, operator_of
from deploy.seed import TENANT
from ports.ids import PrincipalId, TenantId
from ports.tenant import Acting


class ActAs(Struct, frozen=True, kw_only=True):
    principal: PrincipalId
    home: TenantId
    tenant: TenantId
    end: bool
    json: bool


class ListActing(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    json: bool


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "act-as",
        help="let a service act for another tenant, or not any more",
        description="The service needs a key with the scope tenant:act_as too, and names the tenant in X-Tenant-Id.",
        allow_abbrev=False,
    )
    verb.add_argument("principal", help="such as svc_hub")
    verb.add_argument("--tenant", default=TENANT, help=f"whose it is ({TENANT})")
    verb.add_argument("--for", dest="acted_for", required=True, help="the tenant that it acts for")
    verb.add_argument("--end", action="store_true", help="refused within 5 s")
    verb.add_argument("--json", action="store_true", help="print as JSON")
    verb.set_defaults(run=act_as, options=_act_as)
    listed = verbs.add_parser("acting", help="who of other tenants may act for a tenant")
    listed.add_argument("--tenant", default=TENANT, help=f"for whom ({TENANT})")
    listed.add_argument("--json", action="store_true", help="print as JSON")
    listed.set_defaults(
        run=list_acting, options=lambda parsed: ListActing(tenant=tenant_id(parsed.tenant), json=parsed.json)
    )


def _act_as(parsed: argparse.Namespace) -> ActAs:
    return ActAs(
        principal=principal_id(parsed.principal),
        home=tenant_id(parsed.tenant),
        tenant=tenant_id(parsed.acted_for),
        end=parsed.end,
        json=parsed.json,
    )


def act_as(options: ActAs, io: Io) -> int:
    auth = operator_of(options.tenant)

    async def act(directory: Directory) -> tuple[Acting, ...]:
        tenants = directory.tenants
        # Without this, a typo in the tenant's name would let somebody act who can't exist.
        await tenants.get(auth, options.home)
        change = tenants.end_acting if options.end else tenants.let_act
        await change(auth, options.tenant, actor_tenant=options.home, principal=options.principal)
        return await tenants.list_acting(auth, options.tenant)

    _show(io, with_directory(io, act), as_json=options.json)
    return FINE


def list_acting(options: ListActing, io: Io) -> int:
    async def act(directory: Directory) -> tuple[Acting, ...]:
        return await directory.tenants.list_acting(operator_of(options.tenant), options.tenant)

    _show(io, with_directory(io, act), as_json=options.json)
    return FINE


def _show(io: Io, found: tuple[Acting, ...], *, as_json: bool) -> None:
    if as_json:
        io.json(found)
        return
    io.columns(
        ("TENANT", "PRINCIPAL", "NAME THERE", "SINCE"),
        (
            (one.actor_tenant, one.principal, f"{one.actor_tenant}/{one.principal}", f"{one.created_at:%Y-%m-%d %H:%M}")
            for one in found
        ),
    )
