"""What a command may touch of the outside: two streams, the environment, and how to write to them.

stdout is data: what was asked for, for people or, with --json, for machines. stderr is talk: progress, remarks, errors.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TextIO, TypeAlias

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

from deploy.config import Config, Resolved, parse_file, resolve
from deploy.node import Node
from deploy.report import Check, Phase, word

FINE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

# Phases that never change anything: nobody needs to be told each time.
_ONLY_LOOK: Final = frozenset({"preflight", "validate", "verify"})

# What moves a cursor, names a window or turns a line around. Tenants, models and tools say it, and the operator's
# terminal would do it.
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS: Final = re.compile("[\t\n\u2028\u2029]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Io:
    out: TextIO
    err: TextIO
    environ: Mapping[str, str]

    @property
    def node(self) -> Node:
        return Node.locate(self.environ)

    def resolved(self, flags: Mapping[str, str] | None = None) -> Resolved:
        """The settings in force for the node of this environment."""
        return resolve(flags or {}, parse_file(self.node.env_file))

    def config(self) -> Config:
        return self.resolved().config

    def data(self) -> Console:
        return _console(self.out, self.environ)

    def talk(self) -> Console:
        return _console(self.err, self.environ)

    def json(self, value: object) -> None:
        """One JSON document on a line of its own."""
        self.out.write(harmless_json(msgspec.json.encode(value)) + "\n")
        self.out.flush()

    def columns(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table that is never cut: it may be piped, searched and copied."""
        table = [list(head), *([_LINE_ENDS.sub("\ufffd", harmless(cell)) for cell in row] for row in rows)]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        console = self.data()
        for number, row in enumerate(table):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            console.print(f"[bold]{escape(line)}[/]" if number == 0 else escape(line))

    def say(self, text: str) -> None:
        self.talk().print(escape(text))


class TextConsole(Console):
    """Prints texts as texts: what a terminal would obey is shown as a replacement character."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(harmless(text), **options)


def harmless(text: str) -> str:
    return _CONTROLS.sub("\ufffd", text)


def harmless_json(document: bytes) -> str:
    """The same value, with escapes for what a terminal would obey."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", document.decode())


Run: TypeAlias = Callable[[Any, Io], int]
"""A command's `run(options, io)`. Each has its own options Struct, made by its own parser."""


@dataclass(slots=True)
class TerminalProgress:
    """Progress for people: a line per phase; while it lasts, what it is at. Without a terminal, a line per milestone."""

    console: Console
    verbose_checks: bool = False
    _status: Status | None = field(default=None, init=False)
    _name: str = field(default="", init=False)

    def phase_began(self, name: str) -> None:
        self._name = name
        if self.console.is_terminal:
            self._status = self.console.status(f"[bold]{escape(name)}[/]")
            self._status.start()
        else:
            self.console.print(f"… {escape(name)}")

    def milestone(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"[bold]{escape(self._name)}[/] {escape(text)}")
        else:
            self.console.print(f"    {escape(text)}")

    def checked(self, check: Check) -> None:
        if check.skipped:
            self.console.print(f"    [yellow]–[/] {escape(check.name)}: {escape(check.detail)}")
        elif not check.ok:
            self.console.print(
                f"    [red]✗[/] {escape(check.name)} [dim]({escape(check.part)})[/]: {escape(check.detail)}"
            )
        elif self.verbose_checks:
            self.console.print(
                f"    [green]✓[/] {escape(check.name)} [dim]{check.ms:.0f} ms  {escape(check.detail)}[/]"
            )
        elif self._status is not None:
            self.milestone(f"{check.name}: {word(check)}")

    def phase_ended(self, phase: Phase) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        mark = "[green]✓[/]" if phase.ok else "[red]✗[/]"
        says_nothing = phase.changed or not phase.ok or phase.name in _ONLY_LOOK
        unchanged = "" if says_nothing else " [dim](unchanged)[/]"
        took = f"{phase.ms / 1_000:.1f} s" if phase.ms >= 1_000 else f"{phase.ms:.0f} ms"  # noqa: PLR2004
        summary = escape(phase.summary)
        self.console.print(f"{mark} [bold]{escape(phase.name):<10}[/] [dim]{took:>8}[/]  {summary}{unchanged}")

    def note(self, text: str) -> None:
        self.console.print(f"    [cyan]•[/] {escape(text)}")


def show_failure(console: Console, check: Check) -> None:
    """The check that stopped us, the end of the log, and what to type next."""
    console.print()
    console.print(f"[red bold]{escape(check.part)}[/][red]: {escape(check.name)}: {escape(check.detail)}[/]")
    for line in check.log_tail:
        console.print(f"  [dim]{escape(line)}[/]")
    if check.next_command:
        console.print(f"Next: [bold]{escape(check.next_command)}[/]")


def _console(stream: TextIO, environ: Mapping[str, str]) -> Console:
    # soft_wrap: a path or a command that is copied must not have line breaks in it.
    return TextConsole(file=stream, highlight=False, soft_wrap=True, emoji=False, _environ=dict(environ))
