"""`agentos status`: what runs, since when, and whether it is ready."""

import argparse

from msgspec import Struct

from deploy.catalogue import catalogue
from deploy.cli.io import FAILED, FINE, UNREACHABLE, Io
from deploy.service_lines import service_lines
from deploy.supervision import Supervisor


class Options(Struct, frozen=True, kw_only=True):
    json: bool = False


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "status", help="what runs, and whether it is healthy", description="Every service of the node, asked now."
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=run, options=lambda parsed: Options(json=parsed.json))


def run(options: Options, io: Io) -> int:
    node = io.node
    config = io.config()
    supervisor = Supervisor(node)
    alive = supervisor.alive()
    lines = service_lines(catalogue(node, config, io.environ), supervisor)
    healthy = sum(line.healthy for line in lines)
    if options.json:
        summary = {"home": str(node.home), "mode": config.mode, "supervised": alive, "healthy": healthy}
        io.json(summary | {"total": len(lines), "services": lines})
    elif not alive:
        io.say(f"agentos: nothing runs at {node.home}; start it with ./agentos up")
    else:
        io.columns(
            ("SERVICE", "STATE", "PID", "ADDRESS", "READY", "DETAIL"),
            (
                (line.name, line.state, str(line.pid or ""), line.address, "yes" if line.healthy else "NO", line.detail)
                for line in lines
            ),
        )
        io.say(f"services healthy {healthy}/{len(lines)}")
    if not alive:
        return UNREACHABLE
    return FINE if healthy == len(lines) else FAILED
