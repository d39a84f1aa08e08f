"""The command line without a process: run a command, keep what it said."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.cli.main import main
from deploy.report import Check, Phase, word


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
