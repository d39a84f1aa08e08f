"""The command line without a process: run a command, keep what it said."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy import credentials
from deploy.cli.main import main
from deploy.node import Node, write_private
from deploy.report import Check, Phase, word
from tests.support.postgres import Clone


def home_of(database: Clone, directory: Path) -> dict[str, str]:
    """The environment of commands on a node of which there is no more than its database."""
    node = Node.locate({"AGENTOS_HOME": str(directory / "home")})
    node.create()
    write_private(node.secret(credentials.APP_URL), database.app)
    write_private(node.secret(credentials.CONTROL_URL), database.control)
    return {"AGENTOS_HOME": str(node.home)}


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str


def agentos(*arguments: str, environ: Mapping[str, str]) -> Said:
    out, err = io.StringIO(), io.StringIO()
    code = main(arguments, out=out, err=err, environ=environ)
    return Said(code, out.getvalue(), err.getvalue())


class Silent:
    """A progress that only remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase_began(self, name: str) -> None:
        self.lines.append(f"began {name}")

    def milestone(self, text: str) -> None:
        self.lines.append(text)

    def checked(self, check: Check) -> None:
        self.lines.append(f"{check.name}: {word(check)}")

    def phase_ended(self, phase: Phase) -> None:
        self.lines.append(f"ended {phase.name}: {phase.ok}")

    def note(self, text: str) -> None:
        self.lines.append(text)
