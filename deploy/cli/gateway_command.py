"""`agentos gateway`: check, store, show and take back configurations of the model gateway."""

import argparse
from collections.abc import Callable
from typing import Any, Final

from deploy.cli import gateway_check, gateway_versions
from deploy.cli.access import whole
from deploy.cli.io import Io
from ports.gateway_configuration import MAX_PAGE

_EPILOG: Final = """\
  ./agentos gateway check new.json             what is wrong with it, all of it; nothing is changed
  ./agentos gateway apply new.json             store it, which puts it in force; --dry-run shows what would change
  ./agentos gateway show                       what is stored, and what the gateway goes by
  ./agentos gateway history                    every version: who, when, why
  ./agentos gateway rollback 3                 say again what version 3 said

A gateway follows within seconds, and drops no stream for it. A file in AGENTOS_GATEWAY_FILE goes before what is stored.
What can't be used is refused whole; the gateway goes on with what it had, and `./agentos logs stack-b` says why.
Exit codes: 0 fine · 1 it can't be used, or the gateway does not go by it · 3 the node's database does not answer"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "gateway",
        help="the model gateway's configuration: check, apply, show, history, rollback",
        description="The configuration of the model gateway: backends, routing, prices.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)

    check = _verb(
        verbs, "check", "what is wrong with a configuration, and what it would do; changes nothing", gateway_check.run
    )
    check.add_argument("file", nargs="?", default="", help="a JSON file; not said, what this node has in force")
    check.set_defaults(options=lambda parsed: gateway_check.Options(file=parsed.file, json=parsed.json))

    apply = _verb(verbs, "apply", "store a configuration, which puts it in force", gateway_versions.apply)
    apply.add_argument("file", help="a JSON file")
    apply.add_argument("--dry-run", action="store_true", help="only say what is wrong with it, and what would change")
    apply.add_argument("--comment", default="", help="why, for those who come later")
    apply.set_defaults(
        options=lambda parsed: gateway_versions.Apply(
            file=parsed.file, dry_run=parsed.dry_run, comment=parsed.comment, json=parsed.json
        )
    )

    show = _verb(verbs, "show", "what is stored, and what the gateway goes by", gateway_versions.show)
    show.add_argument("--version", type=int, help="an older one")
    show.set_defaults(options=lambda parsed: gateway_versions.Show(version=parsed.version, json=parsed.json))

    history = _verb(verbs, "history", "every version, newest first", gateway_versions.history)
    history.add_argument("--limit", type=int, default=20, help=f"how many, at most {MAX_PAGE} (20)")
    history.set_defaults(
        options=lambda parsed: gateway_versions.History(
            limit=whole("--limit", parsed.limit, least=1, most=MAX_PAGE), json=parsed.json
        )
    )

    rollback = _verb(verbs, "rollback", "say again what an earlier version said", gateway_versions.rollback)
    rollback.add_argument("version", type=int, help="which; ./agentos gateway history lists them")
    rollback.add_argument("--dry-run", action="store_true", help="only say what would change")
    rollback.add_argument("--comment", default="", help="why, for those who come later")
    rollback.set_defaults(
        options=lambda parsed: gateway_versions.Rollback(
            version=parsed.version, dry_run=parsed.dry_run, comment=parsed.comment, json=parsed.json
        )
    )


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, purpose: str, run: Callable[[Any, Io], int]
) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="print as JSON")
    made.set_defaults(run=run)
    return made
