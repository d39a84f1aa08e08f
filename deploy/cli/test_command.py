"""`agentos test`: every check and test of the repository, in one go, all of them even when one fails.

`agentos test faults` is the long form of the two proofs of the engine: the simulation, and real services under faults.
`agentos test faults --points N` is the third: a worker killed N times at each point of a run. `agentos test controls` takes
each control of the threat model out of a copy of the tree, and demands that its tests fail.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from msgspec import Struct
from rich.markup import escape

from deploy.cli.io import FAILED, FINE, Io
from ports.errors import InvalidArgument

_EPILOG: Final = """\
examples:
  ./agentos test                       everything
  ./agentos test --fast                without the tests that start servers (tests/e2e, tests/integration, tests/bench)
  ./agentos test -- -k isolation -x    what follows -- goes to pytest
  ./agentos test faults --minutes 10   the engine simulated 2,000 times, then real services killed, stopped and cut off
  ./agentos test faults --points 200   a worker killed 200 times at each point of a run (45 minutes)
  ./agentos test controls              each control of docs/threat-model.md taken out, and its tests seen to fail (hours)
  ./agentos test controls --row S1 --row T4        those of two rows

With CI=true in the environment nothing is skipped in silence: a test that can't run fails."""

_FAULTS: Final = "faults"
_CONTROLS: Final = "controls"
_DEFAULT_MINUTES: Final = 5.0
_EXAMPLES: Final = "2000"
_SLOW: Final = ("tests/e2e", "tests/integration", "tests/bench")
_PROCESSES: Final = 4
"""More than a small machine has processors: whole nodes mostly wait. Each process has a database server of its own."""
_BESIDE: Final = (
    *("-n", str(_PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder"),
    *("-m", "not alone"),
)
"""Whole files, as the tests of a file share a stack or a node, in the order that `tests/conftest.py` gives them."""
_ALONE: Final = ("-m", "alone", "tests/e2e")
"""Those that have the machine to themselves, as what they see of it is measured in seconds."""


class Step(Struct, frozen=True, kw_only=True):
    name: str
    command: tuple[str, ...]
    shown: bool = False
    """Whether its output is shown as it comes; else only when it fails."""
    environment: dict[str, str] = {}


class Options(Struct, frozen=True, kw_only=True):
    fast: bool = False
    pytest: tuple[str, ...] = ()
    minutes: float | None = None
    """Of faults; None for the checks and tests."""
    points: int | None = None
    """Kills at each point of a run; None for the checks and tests."""
    seed: int | None = None
    controls: bool = False
    """Those of the threat model, taken out; instead of the checks and tests."""
    rows: tuple[str, ...] = ()
    """Of the threat model; none: all."""
    jobs: int | None = None


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "test",
        help="every check and test of this repository",
        description="Format, lint, types, import rules, tests.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--fast", action="store_true", help="only what needs no server")
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help="with `faults`: how long, about (5); up to twice as long until enough was seen",
    )
    parser.add_argument("--points", type=int, default=None, help="with `faults`: instead, kills at each point of a run")
    parser.add_argument("--seed", type=int, default=None, help="with `faults`: repeats the choices of an earlier run")
    parser.add_argument(
        "--row", action="append", metavar="ID", help="with `controls`: of this row only; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help="with `controls`: how many at once (2)")
    parser.add_argument("pytest", nargs="*", metavar="-- pytest arguments", help="handed to pytest as they are")
    parser.set_defaults(run=run, options=_options)


def _options(parsed: argparse.Namespace) -> Options:
    if parsed.pytest[:1] == [_CONTROLS]:
        if (parsed.minutes, parsed.points, parsed.seed) != (None, None, None):
            raise InvalidArgument("--minutes, --points and --seed go with `agentos test faults`")
        return Options(controls=True, rows=tuple(parsed.row or ()), jobs=parsed.jobs)
    if (parsed.row, parsed.jobs) != (None, None):
        raise InvalidArgument("--row and --jobs go with `agentos test controls`")
    if parsed.pytest[:1] == [_FAULTS]:
        if parsed.points is not None:
            if parsed.minutes is not None:
                raise InvalidArgument("--points takes as long as it takes; leave --minutes out")
            return Options(points=parsed.points, seed=parsed.seed)
        minutes = _DEFAULT_MINUTES if parsed.minutes is None else parsed.minutes
        return Options(minutes=minutes, seed=parsed.seed)
    if (parsed.minutes, parsed.points, parsed.seed) != (None, None, None):
        raise InvalidArgument("--minutes, --points and --seed go with `agentos test faults`")
    return Options(fast=parsed.fast, pytest=tuple(parsed.pytest))


def steps(options: Options, scripts: Path) -> tuple[Step, ...]:
    """What will be run, in order. Pure."""
    if options.controls:
        return (_controls(options, str(scripts / "python")),)
    if options.points is not None:
        return (_driver("kills", options.seed, str(scripts / "python"), "--points", str(options.points)),)
    if options.minutes is not None:
        return _fault_steps(options.minutes, options.seed, str(scripts / "python"))
    return (
        Step(name="format", command=(str(scripts / "ruff"), "format", "--check", ".")),
        Step(name="lint", command=(str(scripts / "ruff"), "check", ".")),
        Step(name="types", command=(str(scripts / "mypy"),)),
        Step(name="imports", command=(str(scripts / "lint-imports"),)),
        *_test_steps(options, (str(scripts / "python"), "-m", "pytest")),
    )


def _test_steps(options: Options, pytest: tuple[str, ...]) -> tuple[Step, ...]:
    ignored = tuple(f"--ignore={folder}" for folder in _SLOW) if options.fast else ()
    if options.pytest:
        return (Step(name="tests", command=(*pytest, *options.pytest, *ignored), shown=True),)
    # Why something was skipped is always said.
    usual = (*pytest, "-q", "-rs")
    tests = Step(name="tests", command=(*usual, *_BESIDE, *ignored), shown=True)
    if options.fast:
        return (tests,)
    return (tests, Step(name="alone", command=(*usual, *_ALONE), shown=True))


def _fault_steps(minutes: float, seed: int | None, python: str) -> tuple[Step, ...]:
    return (
        Step(
            name="simulation",
            command=(python, "-m", "pytest", "-q", "tests/unit/test_engine_simulation.py"),
            environment={"AGENTOS_SIMULATION_EXAMPLES": _EXAMPLES},
        ),
        _driver("faults", seed, python, "--minutes", f"{minutes:g}"),
    )


def _driver(name: str, seed: int | None, python: str, *flags: str) -> Step:
    seeded = () if seed is None else ("--seed", str(seed))
    return Step(name=name, command=(python, "-m", "tests.faults", *flags, *seeded), shown=True)


def _controls(options: Options, python: str) -> Step:
    rows = tuple(word for row in options.rows for word in ("--row", row))
    jobs = () if options.jobs is None else ("--jobs", str(options.jobs))
    return Step(name="controls", command=(python, "-m", "tests.controls", *rows, *jobs), shown=True)


def run(options: Options, io: Io) -> int:
    root = io.node.code
    if not (root / "tests").is_dir():
        raise InvalidArgument("the tests are part of the repository, not of the installed package; run this in a clone")
    console = io.talk()
    failed = []
    # pytest and its children must find this tree, whatever directory we were called from.
    environ = dict(io.environ) | {"PYTHONPATH": str(root)}
    # Hundreds of processes follow; each would compile every module anew.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    planned = steps(options, Path(sys.executable).parent)
    for number, step in enumerate(planned, start=1):
        console.print(f"[dim]{number}/{len(planned)}[/] [bold]{escape(step.name)}[/]")
        began = time.perf_counter()
        done = subprocess.run(  # noqa: S603 - our own tools; the arguments after -- are the caller's on purpose
            step.command,
            cwd=root,
            env=environ | step.environment,
            check=False,
            text=True,
            stdout=None if step.shown else subprocess.PIPE,
            stderr=None if step.shown else subprocess.STDOUT,
        )
        took = time.perf_counter() - began
        if done.returncode == 0:
            console.print(f"    [green]✓[/] {escape(step.name)} [dim]{took:.1f} s[/]")
            continue
        failed.append(step.name)
        if done.stdout:
            io.err.write(done.stdout)
        console.print(f"    [red]✗[/] {escape(step.name)} [dim]{took:.1f} s[/], exit code {done.returncode}")
    if failed:
        console.print(f"[red bold]failed: {escape(', '.join(failed))}[/]")
        return FAILED
    io.out.write(f"all {len(planned)} steps passed\n")
    return FINE
