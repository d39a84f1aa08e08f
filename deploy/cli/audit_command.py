"""`agentos audit query|verify|export|sign`: what was done and denied, and whether anybody changed what was noted of it."""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct

from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import load_key
from deploy import credentials
from deploy.audit_check import checked_chains, checked_export, exported
from deploy.audit_heads import FILE, NOTHING, HeadsFile, Signed, public_key, read_heads
from deploy.audit_signer import Signer
from deploy.cli.access import tenant_id, whole
from deploy.cli.gateway_check import OPERATOR
from deploy.cli.io import FAILED, FINE, Io
from deploy.internal import open_audit
from ports.audit import MAX_PAGE, AuditLog, Link, Outcome, Wanted
from ports.audit_rules import Verdict, chain_name, chain_named, moment
from ports.errors import InvalidArgument, Unavailable
from ports.ids import TenantId

CONTRADICTED: Final = 2
"""Somebody changed what was noted, or a signature does not fit it."""

_EPILOG: Final = """\
  ./agentos audit query --tenant tnt_acme --action 'key.*'       newest first; --denied, --principal, --since, --until
  ./agentos audit verify                                         every tenant's chain, against the signed heads
  ./agentos audit export --tenant tnt_acme --out acme.jsonl      the whole chain, to hand over (--home: of a home)
  ./agentos audit verify --export acme.jsonl --heads heads.jsonl --key public_key.pem     elsewhere, without the node
  ./agentos audit sign                                           sign the heads now; the admin service does it every minute

Looking into a tenant's audit from here is itself in that audit. About a mismatch: runbooks/audit-mismatch.md.

Exit codes of verify: 0 all of it holds · 2 it contradicts itself or what was signed; the first bad number is named ·
1 nothing could be checked · 3 the node's database does not answer"""

ResultT = TypeVar("ResultT")


class Query(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    wanted: Wanted
    limit: int
    cursor: str | None
    json: bool


class Verify(Struct, frozen=True, kw_only=True):
    tenant: TenantId | None
    export: str
    heads: str
    keys: tuple[str, ...]
    json: bool


class Export(Struct, frozen=True, kw_only=True):
    tenant: TenantId
    home: str
    out: str


class Sign(Struct, frozen=True, kw_only=True):
    json: bool


def query(options: Query, io: Io) -> int:
    page = _with_log(
        io,
        lambda log: log.query(OPERATOR, options.tenant, options.wanted, limit=options.limit, cursor=options.cursor),
    )
    if options.json:
        io.json({"tenant_id": options.tenant, "entries": page.items, "next_cursor": page.next_cursor})
        return FINE
    io.columns(("SEQ", "WHEN", "WHO", "ACTION", "SUBJECT", "OUTCOME", "DETAIL"), map(_shown, page.items))
    if page.next_cursor is not None:
        io.say(f"More: --cursor {page.next_cursor}")
    return FINE


def verify(options: Verify, io: Io) -> int:
    signed = _signed(options, io)
    if options.export:
        with Path(options.export).open("rb") as file:
            verdicts = [checked_export(file, signed.heads)]
    else:
        verdicts = _with_log(io, lambda log: checked_chains(log, OPERATOR, options.tenant, signed.heads))
    good = not signed.bad and all(one.good for one in verdicts)
    if options.json:
        io.json(
            {
                "good": good,
                "signed_lines": signed.lines,
                "signed_until": signed.newest,
                "heads": signed.bad,
                "tenants": verdicts,
            }
        )
    else:
        _tell(io, signed, verdicts)
    return FINE if good else CONTRADICTED


def export(options: Export, io: Io) -> int:
    async def written(log: AuditLog) -> int:
        handle = (
            sys.stdout.buffer.fileno()
            if not options.out
            else os.open(options.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        )
        size = 0
        with os.fdopen(handle, "wb", closefd=bool(options.out)) as file:
            storage = log.at(options.home) if options.home else log
            async for lines in exported(storage, OPERATOR, options.tenant, datetime.now(UTC)):
                file.write(lines)
                size += len(lines)
        return size

    try:
        size = _with_log(io, written)
    except FileExistsError:
        raise InvalidArgument(f"{options.out} is there already; an export never goes over another") from None
    io.say(f"{size:,} bytes; check it with ./agentos audit verify --export {options.out or 'FILE'}")
    return FINE


def sign(options: Sign, io: Io) -> int:
    config = io.config()
    file = HeadsFile(io.node.audit, load_key(_key(io)), copy=Path(config.audit_copy) if config.audit_copy else None)
    decided = _with_log(io, lambda log: Signer(log, file, SystemClock()).sign())
    if decided is None:
        io.say("nothing was signed: another process signs at this moment, or the file of heads is damaged")
        return FAILED
    if options.json:
        io.json(decided)
    else:
        io.say(f"{len(decided.sign)} heads have moved and were signed")
        for name in decided.refused:
            tenant = chain_named(name)[0]
            io.say(f"{name}: its head contradicts what was signed; ./agentos audit verify --tenant {tenant}")
        for home in decided.silent:
            io.say(f"the home {home!r} does not answer: its heads were not signed")
    return CONTRADICTED if decided.refused else FINE


def _tell(io: Io, signed: Signed, verdicts: Sequence[Verdict]) -> None:
    io.columns(
        ("TENANT", "ENTRIES", "ERASED", "SIGNED UP TO", "RESULT"),
        (
            (
                chain_name(one.tenant, one.home),
                str(one.checked),
                str(one.erased),
                str(one.signed),
                "ok" if one.good else f"bad at {one.bad}",
            )
            for one in verdicts
        ),
    )
    if signed.bad:
        io.say(signed.bad)
    if signed.lines == 0:
        io.say("no signed heads are at hand: that an end was cut off, or all was written anew, could not be told")
    for one in verdicts:
        if not one.good:
            io.say(f"{chain_name(one.tenant, one.home)}: number {one.bad}: {one.why}")
    if signed.bad or not all(one.good for one in verdicts):
        io.say("What to do: runbooks/audit-mismatch.md")


def _signed(options: Verify, io: Io) -> Signed:
    path = Path(options.heads) if options.heads else io.node.audit / FILE
    if not path.exists():
        if options.heads:
            raise InvalidArgument(f"there is no file {path}")
        return NOTHING
    keys = [public_key(Path(one)) for one in options.keys] or [public_key(_key(io))]
    return read_heads(path.read_bytes(), keys)


def _key(io: Io) -> Path:
    path = io.node.secret(credentials.AUDIT_KEY)
    if not path.exists():
        raise Unavailable(f"there is no key at {path}; ./agentos up makes it, or name a public one with --key")
    return path


def _shown(one: Link) -> tuple[str, ...]:
    entry = one.entry
    number = f"{one.home}:{one.seq}" if one.home else str(one.seq)
    if entry is None:
        return (number, "", "", "", "erased", "", "")
    who = entry.principal if entry.actor_tenant == entry.tenant else f"{entry.principal} of {entry.actor_tenant}"
    when = entry.at.isoformat(timespec="seconds")
    return (number, when, who, entry.action, entry.subject, entry.outcome, entry.detail)


def _with_log(io: Io, act: Callable[[AuditLog], Awaitable[ResultT]]) -> ResultT:
    async def acted() -> ResultT:
        async with open_audit(io.node) as log:
            return await act(log)

    return asyncio.run(acted())


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "audit",
        help="what was done and denied: query, verify, export, sign",
        description="The audit: one chain of entries per tenant, and signed heads outside the database.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)

    asking = _verb(verbs, "query", "entries of one tenant, newest first", query)
    asking.add_argument("--tenant", required=True, help="whose audit")
    asking.add_argument("--action", help="such as key.revoke, or key.* for all that begin so")
    asking.add_argument("--principal", help="who did it")
    asking.add_argument("--subject", help="what it was done to")
    asking.add_argument("--denied", action="store_true", help="only what was denied")
    asking.add_argument("--since", help="from this moment on (UTC unless it says otherwise)")
    asking.add_argument("--until", help="before this moment")
    asking.add_argument("--limit", type=int, default=50, help=f"how many, at most {MAX_PAGE} (50)")
    asking.add_argument("--cursor", help="go on from here: `next_cursor` of the page before")
    asking.set_defaults(options=_query_options)

    verifying = _verb(verbs, "verify", "whether what was noted is still what was noted", verify)
    verifying.add_argument("--tenant", help="one tenant's chain; not said, all of them")
    verifying.add_argument("--export", default="", help="check this export instead of the database")
    verifying.add_argument("--heads", default="", help="signed heads; not said, this node's")
    verifying.add_argument(
        "--key",
        action="append",
        default=[],
        help="public key they are signed with; may be repeated; not said, this node's",
    )
    verifying.set_defaults(
        options=lambda parsed: Verify(
            tenant=None if parsed.tenant is None else tenant_id(parsed.tenant),
            export=parsed.export,
            heads=parsed.heads,
            keys=tuple(parsed.key),
            json=parsed.json,
        )
    )

    exporting = _verb(verbs, "export", "a tenant's whole chain, a line of JSON per entry", export)
    exporting.add_argument("--tenant", required=True, help="whose audit")
    exporting.add_argument("--out", default="", help="a new file, readable by you only; not said, the output")
    exporting.add_argument("--home", default="", help="the chain in this home; not said, in the shared database")
    exporting.set_defaults(
        options=lambda parsed: Export(tenant=tenant_id(parsed.tenant), home=parsed.home, out=parsed.out)
    )

    signing = _verb(verbs, "sign", "sign the heads now", sign)
    signing.set_defaults(options=lambda parsed: Sign(json=parsed.json))


def _query_options(parsed: argparse.Namespace) -> Query:
    outcome: Outcome | None = "denied" if parsed.denied else None
    return Query(
        tenant=tenant_id(parsed.tenant),
        wanted=Wanted(
            action=parsed.action,
            principal=parsed.principal,
            subject=parsed.subject,
            outcome=outcome,
            since=moment("--since", parsed.since),
            until=moment("--until", parsed.until),
        ),
        limit=whole("--limit", parsed.limit, least=1, most=MAX_PAGE),
        cursor=parsed.cursor,
        json=parsed.json,
    )


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, purpose: str, run: Callable[[Any, Io], int]
) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="print as JSON")
    made.set_defaults(run=run)
    return made
