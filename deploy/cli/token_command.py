"""`agentos token`: a fresh, short-lived access token on stdout, for curl; `token rotate-key`: another signing key."""

import argparse
import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from deploy.action import exclusive
from deploy.cli.access import AUDIENCES, mint, own_principal, whole
from deploy.cli.io import FINE, Io
from deploy.internal import open_audit, operator_of
from deploy.issuer_keys import rotate
from deploy.roles import ROLES
from deploy.seed import TENANT
from ports.audit import Note
from ports.errors import AgentOSError
from ports.ids import PrincipalId, TenantId

MAX_MINUTES: Final = 60
SYSTEM: Final = TenantId("tnt_system")
"""Whose audit has what concerns the node itself."""

_EPILOG: Final = """\
examples:
  curl -H "Authorization: Bearer $(./agentos token)" http://127.0.0.1:8080/v1/agents
  curl -H "Authorization: Bearer $(./agentos token --audience stack-b)" http://127.0.0.1:8081/v1/models
  ./agentos token rotate-key             another signing key, every few months
  ./agentos token rotate-key --revoke    at once, for one that leaked"""


class Options(Struct, frozen=True, kw_only=True):
    tenant: str
    role: str
    audience: str
    minutes: int
    principal: PrincipalId | None


class RotateKey(Struct, frozen=True, kw_only=True):
    revoke: bool
    json: bool


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "token",
        help="mint an access token for curl",
        description="Print a signed access token of this node; nothing else goes to stdout.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--tenant", default=TENANT, help=f"whose ({TENANT})")
    parser.add_argument("--role", default="service", choices=sorted(ROLES), help="what it may do (service)")
    parser.add_argument("--audience", default=AUDIENCES[0], choices=AUDIENCES, help="which API it opens (stack-a)")
    parser.add_argument("--minutes", type=int, default=15, help=f"how long, at most {MAX_MINUTES} (15)")
    parser.add_argument("--principal", help="for whom (the operator)")
    parser.set_defaults(run=run, options=_options)
    verbs = parser.add_subparsers(title="commands", metavar="[rotate-key]", required=False)
    rotated = verbs.add_parser(
        "rotate-key",
        help="sign with a new key; nothing restarts",
        description="Sign with a new key from now on. Tokens of the old one are taken until they expire, an hour at most.",
        allow_abbrev=False,
    )
    rotated.add_argument(
        "--revoke", action="store_true", help="refuse all tokens signed before, within 5 s: for a key that leaked"
    )
    rotated.add_argument("--json", action="store_true", help="print as JSON")
    rotated.set_defaults(run=rotate_key, options=lambda parsed: RotateKey(revoke=parsed.revoke, json=parsed.json))


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        tenant=parsed.tenant,
        role=parsed.role,
        audience=parsed.audience,
        minutes=whole("--minutes", parsed.minutes, least=1, most=MAX_MINUTES),
        principal=None if parsed.principal is None else own_principal(parsed.principal),
    )


def rotate_key(options: RotateKey, io: Io) -> int:
    with exclusive(io.node):
        done = rotate(io.node, revoke=options.revoke, now=time.time())
    noted = _noted(io, done.kid, revoke=options.revoke)
    if options.json:
        io.json(done)
    else:
        io.out.write(f"Signing with {done.kid}.\n")
        ends = ((one.kid, _end(one.until)) for one in done.keys)
        io.columns(("KEY", "VERIFIES UNTIL"), ends)
    if not noted:
        io.err.write("The database could not be reached: the audit has no entry of this rotation.\n")
    return FINE


def _end(until: int | None) -> str:
    return "it is rotated" if until is None else datetime.fromtimestamp(until, UTC).isoformat()


def _noted(io: Io, kid: str, *, revoke: bool) -> bool:
    """Whether the audit has it. A key that leaked is rotated also while there is no database."""
    note = Note(action="issuer.revoke" if revoke else "issuer.rotate", subject=kid)

    async def write() -> None:
        async with open_audit(io.node) as audit:
            await audit.note(operator_of(SYSTEM), note)

    try:
        asyncio.run(write())
    except AgentOSError:
        return False
    return True


def run(options: Options, io: Io) -> int:
    token = mint(
        io,
        options.tenant,
        role=options.role,
        audience=options.audience,
        lifetime=timedelta(minutes=options.minutes),
        principal=options.principal,
    )
    io.out.write(token + "\n")
    return FINE
