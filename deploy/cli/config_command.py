"""`agentos config explain`: every setting in force, and where it came from."""

import argparse

from msgspec import Struct

from deploy import gateway_file, issuers_file, tool_file
from deploy.cli.io import FAILED, FINE, Io
from deploy.config import explain, problems


class Options(Struct, frozen=True, kw_only=True):
    json: bool = False


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "config", help="the settings in force", description="Settings: flags, then .agentos.env, then the defaults."
    )
    nouns = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    explained = nouns.add_parser("explain", help="every setting, its value, and where it came from; secrets masked")
    explained.add_argument("--json", action="store_true", help="print as JSON")
    explained.set_defaults(run=run, options=lambda parsed: Options(json=parsed.json))


def run(options: Options, io: Io) -> int:
    resolved = io.resolved()
    effective = explain(resolved, io.environ)
    found = [
        *problems(resolved.config),
        *tool_file.problems(resolved.config, io.environ),
        *gateway_file.problems(resolved.config, io.environ),
        *issuers_file.problems(resolved.config),
    ]
    if options.json:
        configured = gateway_file.origin(resolved.config)
        io.json(
            {
                "file": str(io.node.env_file),
                "settings": effective,
                "gateway_configuration": configured,
                "problems": found,
            }
        )
    else:
        io.columns(
            ("KEY", "VALUE", "FROM", "MEANING"),
            ((setting.key, setting.value, setting.origin, setting.description) for setting in effective),
        )
        io.say(f"The gateway's configuration comes from {gateway_file.origin(resolved.config)}.")
    for problem in found:
        io.say(f"agentos: {problem}")
    return FAILED if found else FINE
