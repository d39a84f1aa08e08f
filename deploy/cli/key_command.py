"""`agentos key issue|list|rotate|revoke`: the API keys of a tenant."""

import argparse
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from adapters.token_auth import keys
from deploy.cli.access import namespace_of, own_principal, tenant_id, whole, with_directory
from deploy.cli.io import FINE, Io
from deploy.credentials import SeededKey
from deploy.internal import Directory, operator_of
from deploy.roles import ROLES
from deploy.seed import TENANT, issue
from ports.context import DEFAULT_NAMESPACE, SCOPES
from ports.errors import InvalidArgument
from ports.ids import KeyId, PrincipalId, TenantId
from ports.run_state import MAX_PAGE
from ports.tenant import ApiKey

MAX_DAYS: Final = 3_650

_EPILOG: Final = """\
keys for less than a role:
  ./agentos key issue --tenant tnt_acme --principal svc_bot --scope runs:create --scope runs:read --namespace lab

rotate a key, with overlap:
  ./agentos key list --tenant tnt_acme                              find the old one's id
  ./agentos key rotate key_… --tenant tnt_acme --grace-minutes 60   the new one, shown once; the old one ends in an hour
  ./agentos key revoke key_… --tenant tnt_acme                      one that leaked; refused within 5 s"""

MAX_GRACE_MINUTES: Final = 30 * 24 * 60


class Issue(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    role: str | None
    """None: the scopes."""
    scopes: frozenset[str]
    namespace: str
    principal: PrincipalId
    label: str
    days: int | None
    json: bool


class ListKeys(Struct, frozen=True, kw_only=True):
    tenant: str
    json: bool


class Rotate(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    key_id: KeyId
    grace: timedelta
    days: int | None
    json: bool


class Revoke(Struct, frozen=True, kw_only=True):
    tenant: str
    key_id: str


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "key",
        help="issue, list, rotate and revoke API keys",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    issued = verbs.add_parser("issue", help="make a key; its secret is shown once", allow_abbrev=False)
    issued.add_argument("--role", choices=sorted(ROLES), help="what it may do (service)")
    issued.add_argument(
        "--scope", action="append", default=[], choices=sorted(SCOPES), help="one or more instead of a role"
    )
    issued.add_argument("--namespace", default=DEFAULT_NAMESPACE, help=f"which it acts in ({DEFAULT_NAMESPACE})")
    issued.add_argument("--principal", help="for whom, such as svc_shop or usr_ann")
    issued.add_argument("--label", default="", help="a remark for people")
    issued.add_argument("--days", type=int, help="how long it is valid; for ever, if not said")
    issued.set_defaults(run=issue_key, options=_issue_options)
    listed = verbs.add_parser("list", help="the tenant's keys, without their secrets")
    listed.set_defaults(run=list_keys, options=lambda parsed: ListKeys(tenant=parsed.tenant, json=parsed.json))
    rotated = verbs.add_parser(
        "rotate", help="make a key like another one, which ends with its grace", allow_abbrev=False
    )
    rotated.add_argument("key_id", help="as `key list` shows it")
    rotated.add_argument(
        "--grace-minutes", type=int, default=24 * 60, help="how long the old one still works, 0 to 43200 (1440)"
    )
    rotated.add_argument("--days", type=int, help="how long the new one is valid; for ever, if not said")
    rotated.set_defaults(run=rotate, options=_rotate_options)
    revoked = verbs.add_parser("revoke", help="end a key")
    revoked.add_argument("key_id", help="as `key list` shows it")
    revoked.set_defaults(run=revoke, options=lambda parsed: Revoke(tenant=parsed.tenant, key_id=parsed.key_id))
    for verb in (issued, listed, rotated, revoked):
        verb.add_argument("--tenant", default=TENANT, help=f"whose ({TENANT})")
    for verb in (issued, listed, rotated):
        verb.add_argument("--json", action="store_true", help="print as JSON")


def _issue_options(parsed: argparse.Namespace) -> Issue:
    tenant = tenant_id(parsed.tenant)
    who = f"svc_{tenant.removeprefix('tnt_')}" if parsed.principal is None else parsed.principal
    if parsed.role and parsed.scope:
        raise InvalidArgument("give --role or --scope, not both: a role is a bundle of scopes")
    return Issue(
        tenant=tenant,
        role=None if parsed.scope else parsed.role or "service",
        scopes=frozenset(parsed.scope),
        namespace=namespace_of(parsed.namespace),
        principal=own_principal(who),
        label=parsed.label,
        days=None if parsed.days is None else whole("--days", parsed.days, least=1, most=MAX_DAYS),
        json=parsed.json,
    )


def issue_key(options: Issue, io: Io) -> int:
    tenant = options.tenant
    env = io.config().mode

    async def act(directory: Directory) -> SeededKey:
        # Without this, a typo in the tenant's name would make a key that no door accepts.
        await directory.tenants.get(operator_of(tenant), tenant)
        return await issue(
            directory,
            tenant,
            principal=options.principal,
            role=options.role,
            scopes=options.scopes,
            namespace=options.namespace,
            env=env,
            label=options.label,
            lifetime=None if options.days is None else timedelta(days=options.days),
            now=datetime.now(UTC),
        )

    key = with_directory(io, act)
    if options.json:
        io.json(key)
    else:
        io.out.write(f"{key.api_key}\n")
        io.say(f"The key of {key.principal} in {tenant} (id {key.key_id}); it is shown this once.")
    return FINE


def _rotate_options(parsed: argparse.Namespace) -> Rotate:
    minutes = whole("--grace-minutes", parsed.grace_minutes, least=0, most=MAX_GRACE_MINUTES)
    return Rotate(
        tenant=tenant_id(parsed.tenant),
        key_id=KeyId(parsed.key_id),
        grace=timedelta(minutes=minutes),
        days=None if parsed.days is None else whole("--days", parsed.days, least=1, most=MAX_DAYS),
        json=parsed.json,
    )


def rotate(options: Rotate, io: Io) -> int:
    env, now = io.config().mode, datetime.now(UTC)
    secret = keys.new_secret()

    async def act(directory: Directory) -> ApiKey:
        return await directory.tenants.rotate_key(
            operator_of(options.tenant),
            options.key_id,
            secret_sha256=keys.digest(secret),
            old_until=now + options.grace,
            expires_at=None if options.days is None else now + timedelta(days=options.days),
        )

    made = with_directory(io, act)
    key = SeededKey(
        principal=made.principal,
        roles=tuple(sorted(made.roles)),
        scopes=tuple(sorted(made.scopes)),
        key_id=made.id,
        api_key=keys.render(env, made.id, secret),
    )
    if options.json:
        io.json(key)
    else:
        io.out.write(f"{key.api_key}\n")
        io.say(f"The key of {key.principal} in {options.tenant} (id {key.key_id}); it is shown this once.")
        io.say(f"The old one, {options.key_id}, works until {now + options.grace:%Y-%m-%d %H:%M} UTC at most.")
    return FINE


def list_keys(options: ListKeys, io: Io) -> int:
    tenant = tenant_id(options.tenant)

    async def act(directory: Directory) -> list[ApiKey]:
        found: list[ApiKey] = []
        cursor: str | None = None
        while True:
            page = await directory.tenants.list_keys(operator_of(tenant), limit=MAX_PAGE, cursor=cursor)
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                return found

    found = with_directory(io, act)
    if options.json:
        io.json(found)
        return FINE
    now = datetime.now(UTC)
    io.columns(
        ("KEY", "PRINCIPAL", "NAMESPACE", "MAY", "STATUS", "LABEL", "CREATED", "USED"),
        (
            (
                key.id,
                key.principal,
                key.namespace,
                ", ".join(sorted(key.roles or key.scopes)),
                standing(key, now),
                key.label,
                f"{key.created_at:%Y-%m-%d %H:%M}",
                "" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:%M}",
            )
            for key in found
        ),
    )
    return FINE


def standing(key: ApiKey, now: datetime) -> str:
    """In a word, whether the key still opens anything."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= now:
        return "expired"
    return f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "active"


def revoke(options: Revoke, io: Io) -> int:
    tenant = tenant_id(options.tenant)

    async def act(directory: Directory) -> None:
        await directory.tenants.revoke_key(operator_of(tenant), KeyId(options.key_id))

    with_directory(io, act)
    io.out.write(f"{options.key_id} is revoked; it is refused within 5 s\n")
    return FINE
