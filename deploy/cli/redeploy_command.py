"""`agentos redeploy`: the services, one by one, onto the code and the settings of this moment. The data stays."""

import argparse

from msgspec import Struct

from deploy import bring_up, config, gateway_file, issuers_file, smoke, tool_file
from deploy.action import Failed, Recorder, exclusive
from deploy.catalogue import catalogue
from deploy.cli.io import FAILED, FINE, UNREACHABLE, Io, TerminalProgress, show_failure
from deploy.cli.up_command import members
from deploy.supervision import Supervisor
from ports.errors import InvalidArgument


class Options(Struct, frozen=True, kw_only=True):
    json: bool = False


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "redeploy",
        help="restart the services onto the current code and settings",
        description=(
            "Apply the current code and settings: migrate, restart every service but the database one by one, validate. "
            "Tenants, runs, keys and secrets are kept; no request is refused meanwhile."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run, options=lambda parsed: Options(json=parsed.json))


def run(options: Options, io: Io) -> int:
    node = io.node
    settings = io.config()
    if found := config.problems(settings) or [
        *config.dangling(settings, io.environ),
        *tool_file.problems(settings, io.environ),
        *gateway_file.problems(settings, io.environ),
        *issuers_file.problems(settings),
    ]:
        raise InvalidArgument("; ".join(found))
    supervisor = Supervisor(node)
    if not supervisor.alive():
        io.say(f"agentos: nothing runs at {node.home}; start it with ./agentos up")
        return UNREACHABLE
    console = io.talk()
    console.print("[bold]agentos redeploy[/]")
    with exclusive(node):
        recorder = Recorder("redeploy", node, settings, TerminalProgress(console))
        services = catalogue(node, settings, io.environ)
        seeded = None
        try:
            bring_up.check_machine(recorder, services)
            spare = {service.name for service in bring_up.rolled(services)}
            bring_up.boot(recorder, services, io.environ, supervisor, spare=spare)
            bring_up.migrate_database(recorder, io.environ)
            seeded = bring_up.seed(recorder)
            bring_up.roll(recorder, services, supervisor)
            smoke.validate(recorder, services, supervisor)
        except Failed as error:
            show_failure(console, recorder.failure(error))
        report, written = recorder.finish(**members(recorder, services, supervisor, seeded))
    if options.json:
        io.json(report)
    else:
        io.out.write(f"{'Redeployed' if report.ok else 'FAILED'}. Report: {written.markdown}\n")
    return FINE if report.ok else FAILED
