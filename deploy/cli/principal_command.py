"""`agentos principal create|list|show|disable|enable|grant|revoke`: who may act in a tenant, and with what at most."""

import argparse
from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from deploy.cli.access import known_principal, tenant_id, with_directory
from deploy.cli.acting_verbs import add_verbs as add_acting
from deploy.cli.io import FINE, Io
from deploy.internal import Directory, operator_of
from deploy.roles import ROLES, scopes_of
from deploy.seed import TENANT
from ports.errors import InvalidArgument, NotFound
from ports.ids import PrincipalId, TenantId
from ports.run_state import MAX_PAGE
from ports.tenant import Principal

Verb = Literal["create", "show", "disable", "enable", "grant", "revoke"]
Status = Literal["active", "disabled"]

_VERBS: Final[dict[Verb, str]] = {
    "create": "keep a principal; with roles, its keys and tokens do no more than those",
    "show": "what is kept of one",
    "disable": "refuse all its keys and tokens within 5 s",
    "enable": "take them again",
    "grant": "add a role to what it may do at most; the first one bounds it",
    "revoke": "take a role from it; without any it may do nothing",
}
_EPILOG: Final = """\
A principal needs none of this to act: its keys and tokens say what it may do. What is kept here bars or bounds it.

examples:
  ./agentos principal disable usr_ann --tenant tnt_acme
  ./agentos principal create svc_shop --tenant tnt_acme --role viewer
  ./agentos principal act-as svc_hub --tenant tnt_hub --for tnt_acme
  ./agentos principal disable tnt_hub/svc_hub --tenant tnt_acme     whatever tnt_hub says"""


class One(Struct, frozen=True, kw_only=True):
    verb: Verb
    tenant: TenantId
    principal: PrincipalId
    roles: tuple[str, ...]
    json: bool


class ListAll(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    json: bool


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "principal",
        help="bar, bound and list who acts in a tenant",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for name, meaning in _VERBS.items():
        verb = verbs.add_parser(name, help=meaning, allow_abbrev=False)
        verb.add_argument("principal", help="such as svc_shop or usr_ann")
        if name in ("create", "grant", "revoke"):
            verb.add_argument(
                "--role",
                action="append",
                default=[],
                choices=sorted(ROLES),
                required=name != "create",
                help="one or more",
            )
        _common(verb)
        verb.set_defaults(run=act_on, options=lambda parsed, name=name: _one(name, parsed))
    add_acting(verbs)
    listed = verbs.add_parser("list", help="those that something is kept of")
    _common(listed)
    listed.set_defaults(run=list_all, options=lambda parsed: ListAll(tenant=tenant_id(parsed.tenant), json=parsed.json))


def _common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--tenant", default=TENANT, help=f"whose ({TENANT})")
    verb.add_argument("--json", action="store_true", help="print as JSON")


def _one(verb: Verb, parsed: argparse.Namespace) -> One:
    return One(
        verb=verb,
        tenant=tenant_id(parsed.tenant),
        principal=known_principal(parsed.principal),
        roles=tuple(getattr(parsed, "role", ())),
        json=parsed.json,
    )


def changed(verb: Verb, known: Principal | None, roles: Sequence[str]) -> tuple[Status, frozenset[str] | None]:
    """The status and the roles that `verb` leaves. Raises `InvalidArgument` where there is no role to take."""
    status: Status = "active" if known is None else known.status
    had = None if known is None else known.roles
    if verb == "create":
        return status, frozenset(roles) or had
    if verb == "grant":
        return status, (had or frozenset()) | frozenset(roles)
    if verb == "revoke":
        if had is None or not had >= frozenset(roles):
            raise InvalidArgument("it doesn't have that role; see 'principal show'")
        return status, had - frozenset(roles)
    return ("disabled" if verb == "disable" else "active"), had


def act_on(options: One, io: Io) -> int:
    auth = operator_of(options.tenant)

    async def act(directory: Directory) -> Principal:
        if options.verb == "show":
            return await directory.tenants.get_principal(auth, options.principal)
        try:
            known = await directory.tenants.get_principal(auth, options.principal)
        except NotFound:
            known = None
        status, roles = changed(options.verb, known, options.roles)
        scopes = None if roles is None else frozenset[str]().union(*map(scopes_of, roles))
        return await directory.tenants.put_principal(auth, options.principal, status=status, roles=roles, scopes=scopes)

    _show(io, [with_directory(io, act)], as_json=options.json, alone=True)
    return FINE


def list_all(options: ListAll, io: Io) -> int:
    async def act(directory: Directory) -> list[Principal]:
        found: list[Principal] = []
        cursor: str | None = None
        while True:
            page = await directory.tenants.list_principals(operator_of(options.tenant), limit=MAX_PAGE, cursor=cursor)
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                return found

    _show(io, with_directory(io, act), as_json=options.json, alone=False)
    return FINE


def _show(io: Io, found: Sequence[Principal], *, as_json: bool, alone: bool) -> None:
    if as_json:
        io.json(found[0] if alone else found)
        return
    io.columns(
        ("PRINCIPAL", "STATUS", "AT MOST"),
        ((one.id, one.status, _at_most(one)) for one in found),
    )


def _at_most(one: Principal) -> str:
    if one.roles is None:
        return "as issued"
    return ", ".join(sorted(one.roles)) or "nothing"
