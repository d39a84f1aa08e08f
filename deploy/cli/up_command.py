"""`agentos up`: from a clone to a proven node, and nothing at all when it is one already."""

import argparse
from typing import Any, Final

from msgspec import Struct
from rich.console import Console
from rich.markup import escape

from deploy import bring_up, config, gateway_file, issuers_file, smoke, summary, tool_file
from deploy.action import Failed, Recorder, exclusive
from deploy.catalogue import Service, catalogue
from deploy.cli.io import FAILED, FINE, Io, TerminalProgress, show_failure
from deploy.report import Report, Seeded, Written
from deploy.service_lines import service_lines
from deploy.supervision import Supervisor
from ports.errors import InvalidArgument

_EPILOG: Final = """\
phases: preflight, boot, migrate, seed, wire, validate, report. A second `up` changes nothing and says so.
Flags are remembered in .agentos.env, so that every other command talks to the same node.

examples:
  ./agentos up
  ./agentos up --port-stack-a 8090 --port-postgres 5543
  OPENAI_API_KEY=… ./agentos up                      the model gateway finds the provider by itself
  ./agentos up --mode prod --allow-embedded-postgres"""

# Flag → setting.
FLAGS: Final = {
    "--mode": "mode",
    "--profile": "profile",
    "--port-stack-a": "stack_a_port",
    "--port-stack-b": "stack_b_port",
    "--port-worker": "worker_port",
    "--port-admin": "admin_port",
    "--port-postgres": "postgres_port",
}


class Options(Struct, frozen=True, kw_only=True):
    flags: dict[str, str]
    json: bool = False


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "up",
        help="start the node, or bring it up to date",
        description="Start the node and prove that it works.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag, field in FLAGS.items():
        help_text = f"{config.description(field)} Default: {config.default_text(field)}"
        parser.add_argument(flag, dest=field, metavar="…", help=help_text.replace("%", "%%"))
    parser.add_argument(
        "--allow-embedded-postgres", action="store_true", help=config.description("allow_embedded_postgres")
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run, options=_options)


def _options(parsed: argparse.Namespace) -> Options:
    flags = {field: value for field in FLAGS.values() if (value := getattr(parsed, field)) is not None}
    if parsed.allow_embedded_postgres:
        flags["allow_embedded_postgres"] = "true"
    return Options(flags=flags, json=parsed.json)


def run(options: Options, io: Io) -> int:
    node = io.node
    settings = io.resolved(options.flags).config
    if found := config.problems(settings) or [
        *config.dangling(settings, io.environ),
        *tool_file.problems(settings, io.environ),
        *gateway_file.problems(settings, io.environ),
        *issuers_file.problems(settings),
    ]:
        raise InvalidArgument("; ".join(found))
    _stay_in_prod(options, io)
    console = io.talk()
    console.print(f"[bold]agentos up[/] · mode {settings.mode} · profile {settings.profile} · {escape(str(node.home))}")
    with exclusive(node):
        recorder = Recorder("up", node, settings, TerminalProgress(console))
        services = catalogue(node, settings, io.environ)
        supervisor = Supervisor(node)
        seeded = None
        try:
            bring_up.check_machine(recorder, services, options.flags)
            bring_up.remember_flags(recorder, options.flags)
            bring_up.boot(recorder, services, io.environ, supervisor)
            bring_up.migrate_database(recorder, io.environ)
            seeded = bring_up.seed(recorder)
            bring_up.wire(recorder, services, supervisor)
            smoke.validate(recorder, services, supervisor)
        except Failed as error:
            report, written = recorder.finish(**members(recorder, services, supervisor, seeded))
            show_failure(console, recorder.failure(error))
            console.print(f"Report: {escape(str(written.markdown))}")
            if options.json:
                io.json(report)
            return FAILED
        report, written = recorder.finish(**members(recorder, services, supervisor, seeded))
    if options.json:
        io.json(report)
    else:
        show_summary(io.data(), report, written)
    return FINE


def _stay_in_prod(options: Options, io: Io) -> None:
    """A flag must not turn a production node into a demo by a slip: seeding would put known objects beside real ones."""
    remembered, place = config.parse_file(io.node.env_file).get("mode", ("", ""))
    wanted = options.flags.get("mode", remembered)
    if remembered == "prod" and wanted != "prod":
        raise InvalidArgument(
            f"this node is prod ({place}), and {wanted} would seed a demo tenant into it. Use another node "
            "(AGENTOS_HOME=/path ./agentos up), or change AGENTOS_MODE in that file if you mean it"
        )


def members(
    recorder: Recorder, services: tuple[Service, ...], supervisor: Supervisor, seeded: Seeded | None
) -> dict[str, Any]:
    """What the report of an action that concerns the whole node holds besides its phases and checks."""
    return {
        "endpoints": summary.endpoints(recorder.config),
        "services": tuple(service_lines(services, supervisor)),
        "seeded": seeded,
        "credentials": summary.credentials_note(recorder.node),
        "quotas": summary.quotas(recorder.config),
        "alerting": summary.ALERTING,
        "next_commands": summary.next_commands(recorder.node, recorder.config, seeded),
    }


def show_summary(console: Console, report: Report, written: Written) -> None:
    changed = any(phase.changed for phase in report.phases)
    took = (report.finished_at - report.started_at).total_seconds()
    verdict = "The node is up." if changed else "The node was up already; nothing was changed."
    console.print(
        f"\n[green bold]{verdict}[/] {sum(check.ok for check in report.checks)} checks passed in {took:.1f} s."
    )
    _block(console, "Addresses", report.endpoints)
    smoke_times = {check.name: f"{check.ms:.0f} ms  {check.detail}" for check in report.checks if check.part == "smoke"}
    _block(console, "Smoke tests", smoke_times)
    if report.seeded:
        seeded = report.seeded
        _block(
            console,
            "Seeded",
            {"tenant": seeded.tenant_id, "tenant admin": seeded.admin_principal, "agent": seeded.agent_id}
            | {"tools": ", ".join(seeded.tools)},
        )
    console.print(f"\n[bold]Credentials[/]\n  {escape(report.credentials)}")
    _block(console, "Default quotas of a tenant", report.quotas)
    console.print("\n[bold]Next[/]")
    for command in report.next_commands:
        console.print(f"  {escape(command)}")
    _block(console, "Reports", {"people": str(written.markdown), "machines": str(written.json)})


def _block(console: Console, title: str, lines: dict[str, str]) -> None:
    if lines:
        width = max(map(len, lines))
        console.print(f"\n[bold]{title}[/]")
        for name, value in lines.items():
            console.print(f"  {escape(name):<{width}}  {escape(value)}")
