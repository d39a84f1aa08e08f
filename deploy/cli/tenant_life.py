"""`agentos tenant show|entitle|export|delete`: what a tenant is, what it may, and how it leaves."""

import argparse
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from adapters.postgres.tenant_export import Export, verified
from deploy.administration.entitling import entitled
from deploy.administration.offboarding import Offboarded, check_confirmed, offboard
from deploy.administration.platform import Platform
from deploy.cli.access import tenant_id
from deploy.cli.io import FINE, Io
from deploy.cli.platform_access import with_platform
from deploy.internal import operator_of
from ports.errors import InvalidArgument
from ports.tenant import Tenant


class One(Struct, frozen=True, kw_only=True):
    tenant: str
    json: bool


class Entitle(Struct, frozen=True, kw_only=True):
    tenant: str
    members: tuple[str, ...]
    json: bool


class Delete(Struct, frozen=True, kw_only=True):
    tenant: str
    confirm: str
    json: bool


class Verify(Struct, frozen=True, kw_only=True):
    file: str
    json: bool


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    shown = verbs.add_parser("show", help="one tenant", allow_abbrev=False)
    exported = verbs.add_parser("export", help="write all that there is of a tenant to a file", allow_abbrev=False)
    for verb, act in ((shown, show), (exported, export)):
        verb.add_argument("tenant")
        verb.set_defaults(run=act, options=lambda parsed: One(tenant=parsed.tenant, json=parsed.json))
    granted = verbs.add_parser("entitle", help="change members of the entitlements", allow_abbrev=False)
    granted.add_argument("tenant")
    granted.add_argument("members", nargs="+", metavar="NAME=JSON", help="what is not named stays as it is")
    granted.set_defaults(
        run=entitle,
        options=lambda parsed: Entitle(tenant=parsed.tenant, members=tuple(parsed.members), json=parsed.json),
    )
    deleted = verbs.add_parser(
        "delete", help="export a disabled tenant, and remove everything of it for good", allow_abbrev=False
    )
    deleted.add_argument("tenant")
    deleted.add_argument("--confirm", default="", metavar="TENANT", help="the tenant's id once more")
    deleted.set_defaults(
        run=delete, options=lambda parsed: Delete(tenant=parsed.tenant, confirm=parsed.confirm, json=parsed.json)
    )
    checked = verbs.add_parser("verify-export", help="whether an exported file is whole", allow_abbrev=False)
    checked.add_argument("file")
    checked.set_defaults(run=verify, options=lambda parsed: Verify(file=parsed.file, json=parsed.json))
    for verb in (shown, exported, granted, deleted, checked):
        verb.add_argument("--json", action="store_true", help="print as JSON")


def show(options: One, io: Io) -> int:
    name = tenant_id(options.tenant)

    async def act(platform: Platform) -> Tenant:
        return await platform.tenants.get(operator_of(name), name)

    return _shown(with_platform(io, act), io, as_json=options.json)


def entitle(options: Entitle, io: Io) -> int:
    name, changes = tenant_id(options.tenant), dict(map(_member, options.members))

    async def act(platform: Platform) -> Tenant:
        operator = operator_of(name)
        known = await platform.tenants.get(operator, name)
        return await platform.tenants.set_entitlements(
            operator, name, entitled(known.entitlements, changes), if_match=known.version
        )

    return _shown(with_platform(io, act), io, as_json=options.json)


def export(options: One, io: Io) -> int:
    name = tenant_id(options.tenant)

    async def act(platform: Platform) -> Export:
        return await platform.export(name)

    made = with_platform(io, act)
    if options.json:
        io.json(made)
        return FINE
    io.out.write(f"{made.path}\n")
    io.say(f"{made.manifest.rows:,} rows of {len(made.manifest.tables)} tables; {made.sha256}")
    return FINE


def verify(options: Verify, io: Io) -> int:
    manifest = verified(Path(options.file))
    if options.json:
        io.json(manifest)
        return FINE
    io.columns(
        ("TABLE", "ROWS", "SHA-256"),
        ((name, f"{table.rows:,}", table.sha256.removeprefix("sha256:")) for name, table in manifest.tables.items()),
    )
    io.say(f"{manifest.tenant_id} as of {manifest.made_at:%Y-%m-%d %H:%M:%S}: every row is as it was written")
    return FINE


def delete(options: Delete, io: Io) -> int:
    name = tenant_id(options.tenant)
    if options.confirm != name:
        io.say(f"If you mean it: ./agentos tenant delete {name} --confirm {name}")
    check_confirmed(name, options.confirm)

    async def act(platform: Platform) -> Offboarded:
        return await offboard(
            operator_of(name),
            name,
            tenants=platform.tenants,
            administration=platform.administration,
            export=platform.export,
        )

    gone = with_platform(io, act)
    if options.json:
        io.json({"tenant_id": name, **msgspec.to_builtins(gone)})
        return FINE
    if gone.export is not None:
        io.out.write(f"exported to {gone.export.path}\n")
    io.out.write(f"{name} is deleted: {gone.removed:,} rows removed; the export is {gone.export_sha256}\n")
    io.say("Its audit stays. Its id is not used again.")
    return FINE


def _shown(tenant: Tenant, io: Io, *, as_json: bool) -> int:
    if as_json:
        io.json(tenant)
        return FINE
    entitlements: dict[str, Any] = msgspec.to_builtins(tenant.entitlements)
    io.columns(
        ("WHAT", "VALUE"),
        (
            ("tenant", tenant.id),
            ("name", tenant.name),
            ("status", tenant.status),
            ("created", f"{tenant.created_at:%Y-%m-%d %H:%M:%S}"),
            *((member, msgspec.json.encode(value).decode()) for member, value in entitlements.items()),
        ),
    )
    return FINE


def _member(text: str) -> tuple[str, Any]:
    name, given, value = text.partition("=")
    if not given:
        raise InvalidArgument(f"write a member as name=JSON, such as max_active_runs=7, not {text!r}")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        raise InvalidArgument(f"{name}: {value!r} is not JSON; a text needs its quotes") from None
