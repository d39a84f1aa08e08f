"""`agentos nuke`: takes the node away, in two steps and with a second thought before each."""

import argparse
from typing import Final

from msgspec import Struct

from deploy import tear_down
from deploy.action import Failed, Recorder, exclusive
from deploy.cli.io import FAILED, FINE, USAGE, Io, TerminalProgress, show_failure
from deploy.config import Config
from deploy.supervision import Supervisor
from ports.errors import InvalidArgument

_EPILOG: Final = """\
  ./agentos nuke                        say what would go; remove nothing (exit 2)
  ./agentos nuke --yes-really           stop everything; keep the data, the secrets and the settings
  ./agentos nuke --hard --yes-really    remove those as well: EVERY TENANT'S DATA on this node

Reports are never removed."""


class Options(Struct, frozen=True, kw_only=True):
    hard: bool = False
    yes_really: bool = False
    json: bool = False


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "nuke",
        help="take the node away (asks for --yes-really)",
        description="Stop the node and remove what it made.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--hard", action="store_true", help="also the data, the secrets, the logs and the settings")
    parser.add_argument("--yes-really", action="store_true", help="do it")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(
        run=run,
        options=lambda parsed: Options(hard=parsed.hard, yes_really=parsed.yes_really, json=parsed.json),
    )


def run(options: Options, io: Io) -> int:
    node = io.node
    if not options.yes_really:
        return _only_say(options, io)
    console = io.talk()
    console.print(f"[bold]agentos nuke{' --hard' if options.hard else ''}[/] · {node.home}")
    with exclusive(node):
        recorder = Recorder("nuke", node, _config(io), TerminalProgress(console))
        supervisor = Supervisor(node)
        try:
            tear_down.stop_everything(recorder, supervisor)
            tear_down.remove(recorder, hard=options.hard)
            tear_down.verify(recorder, hard=options.hard)
        except Failed as error:
            report, written = recorder.finish()
            show_failure(console, recorder.failure(error))
            io.say(f"Report: {written.markdown}")
            if options.json:
                io.json(report)
            return FAILED
        # The report may belong inside the home (AGENTOS_HOME); then that much of it stays.
        report, written = recorder.finish()
    if options.hard:
        tear_down.remove_empty_home(node)
    if options.json:
        io.json(report)
    else:
        kept = (
            "" if options.hard else f"Data, secrets and settings are kept in {node.home}; ./agentos up starts again.\n"
        )
        io.out.write(f"The node is gone. {kept}Report: {written.markdown}\n")
    return FINE


def _only_say(options: Options, io: Io) -> int:
    node = io.node
    lines = tear_down.plan(node, hard=options.hard)
    command = f"./agentos nuke{' --hard' if options.hard else ''} --yes-really"
    if options.json:
        io.json({"would": lines, "done": False, "command": command})
    else:
        io.out.write("".join(f"would {line}\n" for line in lines) or f"There is nothing at {node.home} to remove.\n")
    io.say(f"Nothing was removed. To do it: {command}")
    return USAGE


def _config(io: Io) -> Config:
    """The node's settings, for the report; a node with a broken file can be taken away all the same."""
    try:
        return io.config()
    except InvalidArgument:
        return Config()
