"""`agentos privacy export|erase|erasures|hold|release|holds|retention`: what is kept of somebody, and for how long."""

import argparse
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from adapters.postgres.tenant_export import Export as Exported
from deploy.administration.platform import Platform
from deploy.administration.privacy import check_erasing_confirmed, erase_for, export_for
from deploy.cli.access import tenant_id
from deploy.cli.io import FINE, Io
from deploy.cli.platform_access import with_platform
from deploy.cli.sealed_texts import opened_by
from deploy.internal import operator_of
from ports.errors import InvalidArgument
from ports.ids import PrincipalId, TenantId
from ports.privacy import CLASSES, MIN_RETENTION_DAYS, Counts, DataClass, Erasure, Hold, check_days, check_subject

NODE: Final = "node"
"""In place of days: as long as the node keeps it."""
_EPILOG: Final = """\
A subject is a principal of a tenant, a person or a service, in all of its namespaces.

examples:
  ./agentos privacy export usr_ann --tenant tnt_acme                       hand over what is kept of somebody
  ./agentos privacy erase usr_ann --tenant tnt_acme --confirm usr_ann      remove it for good; the audit stays verifiable
  ./agentos privacy hold usr_ann --tenant tnt_acme --reason "case 17/26"   keep it whatever else is asked, until released
  ./agentos privacy hold --everybody --tenant tnt_acme --reason "case 18/26"
  ./agentos privacy retention --tenant tnt_acme runs=30 audit=365          keep runs for 30 days; =node undoes a rule

What a request is answered with, step by step: runbooks/privacy-request.md. What is kept where: docs/privacy.md."""

_GOES: Final[dict[str, str]] = {
    "runs": "runs removed, with journals, events and bodies",
    "texts": "kept prompts and answers removed",
    "replies": "journaled replies removed",
    "memory": "memory items removed",
    "keys": "API keys removed",
    "requests": "requests made nobody's",
    "usage": "usage events made nobody's",
    "audit": "audit entries emptied",
}
_NODES: Final[dict[DataClass, str]] = {
    "texts": "as long as the tenant has its prompts kept",
    "usage": "for good",
    "memory": "for good",
    "audit": "for good",
}


class About(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    subject: PrincipalId
    json: bool
    confirm: str = ""


class Place(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    subject: PrincipalId | None
    reason: str
    json: bool


class Release(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    hold: str
    json: bool


class Look(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    json: bool


class Retention(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    days: dict[DataClass, int | None]
    json: bool


def export(options: About, io: Io) -> int:
    with io.talk().status(f"reading what is kept of {options.subject}") as status:

        async def act(platform: Platform) -> Exported:
            return await export_for(
                operator_of(options.tenant),
                options.tenant,
                options.subject,
                tenants=platform.tenants,
                audit=platform.audit,
                export=platform.export_subject,
            )

        made = with_platform(
            io,
            act,
            opened=opened_by(io, options.tenant),
            tell=lambda table, rows: status.update(f"{table}, after {rows:,} rows"),
        )
    if options.json:
        io.json(made)
        return FINE
    io.out.write(f"{made.path}\n")
    tables = sum(table.rows > 0 for table in made.manifest.tables.values())
    io.say(f"{made.manifest.rows:,} rows of {tables} tables; {made.sha256}")
    io.say(f"It holds personal data in clear. Check it with ./agentos tenant verify-export {made.path}")
    return FINE


def erase(options: About, io: Io) -> int:
    if options.confirm != options.subject:
        io.say("It is barred at once, and all that is kept of it is removed. There is no undo; export it first.")
        io.say(
            f"If you mean it: ./agentos privacy erase {options.subject} --tenant {options.tenant} "
            f"--confirm {options.subject}"
        )
    check_erasing_confirmed(options.subject, options.confirm)
    with io.talk().status(f"erasing {options.subject}") as status:

        async def act(platform: Platform) -> Erasure:
            return await erase_for(
                operator_of(options.tenant),
                options.tenant,
                options.subject,
                privacy=platform.privacy,
                tell=lambda one: status.update(f"erasing: {in_words(one.counts)}"),
            )

        erasure = with_platform(io, act)
    if options.json:
        io.json({"tenant_id": options.tenant, **msgspec.to_builtins(erasure)})
        return FINE
    io.out.write(f"{options.subject} is erased from {options.tenant}: {in_words(erasure.counts)}\n")
    io.say(f"Its tombstone is {erasure.name}. It stays barred until ./agentos principal enable names it again.")
    io.say("Backups and logs outside of the database have their own retention: runbooks/privacy-request.md")
    return FINE


def erasures(options: Look, io: Io) -> int:
    async def act(platform: Platform) -> tuple[Erasure, ...]:
        return await platform.privacy.erasures(operator_of(options.tenant), options.tenant)

    found = with_platform(io, act)
    if options.json:
        io.json({"tenant_id": options.tenant, "erasures": found})
        return FINE
    io.columns(
        ("STATUS", "BEGUN", "DONE", "WHAT WENT", "TOMBSTONE"),
        (
            (
                one.status,
                f"{one.begun_at:%Y-%m-%d %H:%M:%S}",
                "" if one.erased_at is None else f"{one.erased_at:%Y-%m-%d %H:%M:%S}",
                in_words(one.counts),
                one.name,
            )
            for one in found
        ),
    )
    if any(not one.done for one in found):
        io.say("One that is erasing was interrupted: ask for it again, it goes on.")
    return FINE


def hold(options: Place, io: Io) -> int:
    async def act(platform: Platform) -> Hold:
        return await platform.privacy.hold(
            operator_of(options.tenant), options.tenant, options.subject, reason=options.reason
        )

    return _shown([with_platform(io, act)], io, as_json=options.json)


def release(options: Release, io: Io) -> int:
    async def act(platform: Platform) -> Hold:
        return await platform.privacy.release(operator_of(options.tenant), options.tenant, options.hold)

    released = with_platform(io, act)
    if options.json:
        io.json(released)
        return FINE
    io.out.write(f"{released.id} is released: {whom(released)} may be erased, and retention goes on\n")
    return FINE


def holds(options: Look, io: Io) -> int:
    async def act(platform: Platform) -> tuple[Hold, ...]:
        return await platform.privacy.holds(operator_of(options.tenant), options.tenant)

    found = with_platform(io, act)
    if options.json:
        io.json({"tenant_id": options.tenant, "holds": found})
        return FINE
    return _shown(found, io, as_json=False)


def retention(options: Retention, io: Io) -> int:
    async def act(platform: Platform) -> dict[DataClass, int]:
        auth = operator_of(options.tenant)
        if options.days:
            await platform.privacy.retain(auth, options.tenant, options.days)
        return await platform.privacy.retention(auth, options.tenant)

    check_days(options.days)
    rules = with_platform(io, act)
    if options.json:
        io.json({"tenant_id": options.tenant, "days": rules})
        return FINE
    node_days = io.config().retention_days
    io.columns(
        ("CLASS", "KEPT", "BY"),
        (
            (name, f"{rules[name]} days", "the tenant")
            if name in rules
            else (name, _NODES.get(name, f"{node_days} days"), "the node")
            for name in CLASSES
        ),
    )
    if any(name in rules and rules[name] > int(node_days) for name in ("runs", "requests")):
        io.say(f"The node keeps runs and requests for {node_days} days at most, whatever a rule says.")
    return FINE


def in_words(counts: Counts) -> str:
    went = msgspec.structs.asdict(counts)
    return ", ".join(f"{went[name]:,} {words}" for name, words in _GOES.items() if went[name]) or "nothing was kept"


def whom(one: Hold) -> str:
    return "all of the tenant" if one.subject is None else one.subject


def rule(text: str) -> tuple[DataClass, int | None]:
    """`runs=30` or `runs=node`. Raises `InvalidArgument`."""
    name, given, value = text.partition("=")
    if not given or name not in MIN_RETENTION_DAYS:
        raise InvalidArgument(
            f"write a rule as class=days, such as runs=30, not {text!r}; classes: {', '.join(CLASSES)}"
        )
    if value == NODE:
        return msgspec.convert(name, DataClass), None
    if not (value.isascii() and value.isdigit()) or len(value) > 5:  # noqa: PLR2004 - no number of days is longer
        raise InvalidArgument(f"{name}: {value!r} is no number of days; {NODE} undoes a rule")
    return msgspec.convert(name, DataClass), int(value)


def _shown(found: "list[Hold] | tuple[Hold, ...]", io: Io, *, as_json: bool) -> int:
    if as_json:
        io.json(found[0])
        return FINE
    io.columns(
        ("HOLD", "WHOM", "SINCE", "BY", "REASON"),
        ((one.id, whom(one), f"{one.placed_at:%Y-%m-%d %H:%M:%S}", one.placed_by, one.reason) for one in found),
    )
    return FINE


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "privacy",
        help="export and erase what is kept of somebody, legal holds, retention",
        description="Requests about one's data, legal holds, and for how long what is kept.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)

    exporting = _verb(verbs, "export", "write all that is kept of a subject to a file", export)
    exporting.add_argument("subject", help="such as usr_ann")
    exporting.set_defaults(options=_about)

    erasing = _verb(verbs, "erase", "bar a subject, and remove all that is kept of it for good", erase)
    erasing.add_argument("subject", help="such as usr_ann")
    erasing.add_argument("--confirm", default="", metavar="SUBJECT", help="the subject's name once more")
    erasing.set_defaults(options=_about)

    erased = _verb(verbs, "erasures", "what was erased, and is being", erasures)
    erased.set_defaults(options=_look)

    placing = _verb(verbs, "hold", "place a legal hold: nothing of it is erased, and retention spares it", hold)
    placing.add_argument("subject", nargs="?", help="such as usr_ann")
    placing.add_argument("--everybody", action="store_true", help="all of the tenant, in place of a subject")
    placing.add_argument("--reason", required=True, help="such as the court's file number; shown with the hold")
    placing.set_defaults(options=_place)

    ending = _verb(verbs, "release", "end a legal hold", release)
    ending.add_argument("hold", help="hld_…, see holds")
    ending.set_defaults(
        options=lambda parsed: Release(tenant=tenant_id(parsed.tenant), hold=parsed.hold, json=parsed.json)
    )

    listing = _verb(verbs, "holds", "the legal holds in force", holds)
    listing.set_defaults(options=_look)

    keeping = _verb(verbs, "retention", "for how long a tenant keeps what; shows it, or changes it first", retention)
    keeping.add_argument(
        "rules", nargs="*", metavar="CLASS=DAYS", help=f"{', '.join(CLASSES)}; {NODE} in place of days undoes a rule"
    )
    keeping.set_defaults(
        options=lambda parsed: Retention(
            tenant=tenant_id(parsed.tenant), days=dict(map(rule, parsed.rules)), json=parsed.json
        )
    )


def subject_id(text: str) -> PrincipalId:
    """Any name that a principal may have, those of other issuers included. Raises `InvalidArgument`."""
    check_subject(text)
    return PrincipalId(text)


def _about(parsed: argparse.Namespace) -> About:
    return About(
        tenant=tenant_id(parsed.tenant),
        subject=subject_id(parsed.subject),
        confirm=getattr(parsed, "confirm", ""),
        json=parsed.json,
    )


def _place(parsed: argparse.Namespace) -> Place:
    if (parsed.subject is None) != parsed.everybody:
        raise InvalidArgument("name a subject, or --everybody for all of the tenant")
    return Place(
        tenant=tenant_id(parsed.tenant),
        subject=None if parsed.everybody else subject_id(parsed.subject),
        reason=parsed.reason,
        json=parsed.json,
    )


def _look(parsed: argparse.Namespace) -> Look:
    return Look(tenant=tenant_id(parsed.tenant), json=parsed.json)


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, purpose: str, run: Callable[[Any, Io], int]
) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False)
    made.add_argument("--tenant", required=True, help="whose")
    made.add_argument("--json", action="store_true", help="print as JSON")
    made.set_defaults(run=run)
    return made
