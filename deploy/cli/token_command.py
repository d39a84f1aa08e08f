"""`agentos token`: a fresh, short-lived access token on stdout, for curl."""

import argparse
from datetime import timedelta
from typing import Final

from msgspec import Struct

from deploy.cli.access import AUDIENCES, mint, principal_id, whole
from deploy.cli.io import FINE, Io
from deploy.roles import ROLES
from deploy.seed import TENANT
from ports.ids import PrincipalId

MAX_MINUTES: Final = 60

_EPILOG: Final = """\
examples:
  curl -H "Authorization: Bearer $(./agentos token)" http://127.0.0.1:8080/v1/agents
  curl -H "Authorization: Bearer $(./agentos token --audience stack-b)" http://127.0.0.1:8081/v1/models"""


class Options(Struct, frozen=True, kw_only=True):
    tenant: str
    role: str
    audience: str
    minutes: int
    principal: PrincipalId | None


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


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        tenant=parsed.tenant,
        role=parsed.role,
        audience=parsed.audience,
        minutes=whole("--minutes", parsed.minutes, least=1, most=MAX_MINUTES),
        principal=None if parsed.principal is None else principal_id(parsed.principal),
    )


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
