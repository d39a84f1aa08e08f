"""`agentos validate`: is every part healthy, and does a run get through all of them?"""

import argparse
from typing import Final

from msgspec import Struct

from deploy import smoke
from deploy.action import Failed, Recorder
from deploy.catalogue import catalogue
from deploy.cli.io import FAILED, FINE, Io, TerminalProgress, show_failure
from deploy.cli.up_command import members
from deploy.supervision import Supervisor

_EPILOG: Final = """\
checks: health of every service; anonymous callers refused; a run of the demo agent with a tool call and a model call
through the gateway; policy check; resuming the event stream; metrics; isolation from another tenant.
Exit 1 names the part that failed, shows the end of its log and the next command."""


class Options(Struct, frozen=True, kw_only=True):
    json: bool = False


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "validate",
        help="prove that the node works",
        description="Health checks and smoke tests; changes nothing that matters.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run, options=lambda parsed: Options(json=parsed.json))


def run(options: Options, io: Io) -> int:
    node = io.node
    config = io.config()
    console = io.talk()
    recorder = Recorder("validate", node, config, TerminalProgress(console, verbose_checks=True))
    services = catalogue(node, config, io.environ)
    supervisor = Supervisor(node)
    try:
        smoke.validate(recorder, services, supervisor)
    except Failed:
        for check in recorder.checks:
            if not check.ok and not check.skipped:
                show_failure(console, check)
    report, written = recorder.finish(**members(recorder, services, supervisor, None))
    if options.json:
        io.json(report)
    else:
        passed = sum(check.ok for check in report.checks)
        io.out.write(f"{'ok' if report.ok else 'FAILED'}: {passed}/{len(report.checks)} checks passed\n")
        io.out.write(f"Report: {written.markdown}\n")
    return FINE if report.ok else FAILED
