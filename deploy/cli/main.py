"""The `agentos` command: parse, run one command, translate what went wrong into a sentence and an exit code.

Exit codes: 0 fine, 1 findings or failure, 2 usage, 3 the node can't be reached.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, TextIO

from deploy.cli.io import FAILED, UNREACHABLE, USAGE, Io
from ports.errors import AgentOSError, InvalidArgument, Unavailable

_EPILOG: Final = """\
a first quarter of an hour:
  ./agentos up                                   start the node; prints where everything is
  ./agentos run agt_demo "What is 17.5 % of 2340?"
  ./agentos status                               what runs, and whether it is healthy
  ./agentos logs stack-a-worker -f               follow a service
  ./agentos validate                             prove that it works, end to end
  ./agentos tenant create tnt_acme --admin-key --sample-agent   room for somebody else
  ./agentos nuke                                 what would be removed; nothing is, yet

Times are UTC.
exit codes: 0 fine · 1 findings or failure · 2 usage · 3 the node can't be reached
AGENTOS_HOME chooses another node than the one in this directory."""

_COMMANDS: Final = (
    "up",
    "status",
    "logs",
    "validate",
    "redeploy",
    "nuke",
    "config",
    "run",
    "runs",
    "replay",
    "tenant",
    "agent",
    "budget",
    "principal",
    "privacy",
    "key",
    "token",
    "gateway",
    "requests",
    "audit",
    "test",
)
"""As help lists them. Each is a module of its own, and a command loads no other's: half of them bring a database along."""


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """Of all commands, or of the `chosen` one only where there is such a command."""
    made = argparse.ArgumentParser(
        prog="agentos",
        description="A portable, multi-tenant platform that runs AI agents.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = made.add_subparsers(title="commands", metavar="<command>", required=True)
    for command in (chosen,) if chosen in _COMMANDS else _COMMANDS:
        import_module(f"deploy.cli.{command}_command").add_parser(commands)
    return made


def main(arguments: Sequence[str], *, out: TextIO, err: TextIO, environ: Mapping[str, str]) -> int:
    """Run one command; returns its exit code."""
    io = Io(out=out, err=err, environ=environ)
    parsed = parser(*arguments[:1]).parse_args(arguments)
    try:
        code: int = parsed.run(parsed.options(parsed), io)
    except InvalidArgument as error:
        io.say(f"agentos: {error.message}")
        return USAGE
    except Unavailable as error:
        io.say(f"agentos: {error.message}")
        return UNREACHABLE
    except AgentOSError as error:
        io.say(f"agentos: {error.message} ({error.code})")
        return FAILED
    except KeyboardInterrupt:
        io.say("agentos: interrupted; the same command continues where it stopped")
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 - the outermost edge: a bug becomes a sentence, with its trace for the report
        io.say(f"agentos: this is a bug: {type(error).__name__}: {error}")
        err.write(traceback.format_exc())
        return FAILED
    return code


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:], out=sys.stdout, err=sys.stderr, environ=os.environ))


if __name__ == "__main__":
    entry()
