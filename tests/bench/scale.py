"""Whether a run costs the same with many tenants and with full tables: `python -m tests.bench.scale`.

One server with a database for each case, made before the rounds: an empty one with one tenant, some with many tenants that
have had runs, some with many finished runs of the tenant that is measured, each with the steps, events, keys and audit of a
real one. The workload is that of the engine's bench. The reference is the empty database, measured at the beginning and at
the end of each round: how far its two figures are apart is what a difference must exceed to mean anything.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from rich.console import Console

from tests.bench import engine, filling, machine
from tests.bench.engine import EngineBench, on_uvloop
from tests.bench.engine_load import CALLER
from tests.bench.figures import ratio
from tests.bench.harness import Figures, Line, Part, at_least_one, conditions, interleaved, record_of, report
from tests.support.postgres import Server, fetch

_EMPTY: Final = "empty"
_AGAIN: Final = "again"
_BEFORE: Final = 8
"""Real runs in each database before anything is copied."""


class Options(Struct, frozen=True, kw_only=True):
    tenants: tuple[int, ...] = (100, 10_000)
    finished: tuple[int, ...] = (100_000, 1_000_000)
    runs: int = 600
    """Per phase at most."""
    concurrency: int = 16
    seconds: float = 5.0
    """A phase creates runs for this long at most."""
    warm_up: int = 32
    rounds: int = 3
    json: str | None = None

    @property
    def engine(self) -> engine.Options:
        return engine.Options(
            runs=self.runs, concurrency=self.concurrency, seconds=self.seconds, warm_up=self.warm_up, rounds=1
        )


SMOKE: Final = Options(tenants=(3,), finished=(50,), runs=10, concurrency=4, seconds=2.0, warm_up=2, rounds=1)


class ScaleBench:
    def __init__(self, server: Server, home: Path, options: Options) -> None:
        self._server = server
        self._home = home
        self._options = options
        self._cases: dict[str, EngineBench] = {}
        self.filled: dict[str, dict[str, float]] = {}
        """By case: how long making it took, and how large it was then."""

    def prepare(self, talk: Console) -> None:
        """Make the databases."""
        options = self._options
        self._make(_EMPTY, talk)
        for count in options.tenants:
            self._make(f"tenants_{count}", talk, tenants=count)
        for count in options.finished:
            self._make(f"finished_{count}", talk, finished=count)

    def _make(self, case: str, talk: Console, *, tenants: int = 1, finished: int = 0) -> None:
        talk.print(f"database: {case}", style="dim")
        home = self._home / case
        home.mkdir()
        if case == _EMPTY:
            server = on_uvloop(filling.create(self._server, _name(case)))
            few = msgspec.structs.replace(self._options.engine, runs=_BEFORE, warm_up=1)
            EngineBench(server, home, few).cost()
        else:
            server = on_uvloop(filling.create(self._server, _name(case), like=_name(_EMPTY)))
        took = 0.0
        if tenants > 1:
            took = on_uvloop(filling.add_tenants(server, tenants))
        if finished:
            took = on_uvloop(filling.add_finished(server, finished))
        [size] = on_uvloop(
            fetch(server.dsn("postgres"), "SELECT pg_database_size(current_database()) / 1048576.0 AS mib")
        )
        self.filled[case] = {"seconds": round(took, 1), "mib": round(float(size["mib"]), 1)}
        self._cases[case] = EngineBench(server, home, self._options.engine, filling.callers(tenants))

    def parts(self) -> list[tuple[str, Part]]:
        def part(case: str, name: str) -> tuple[str, Part]:
            return name, lambda _: {f"{name}_{key}": value for key, value in self._cases[case].cost().items()}

        return [*(part(case, case) for case in self._cases), part(_EMPTY, _AGAIN), ("ratios", self._ratios)]

    def _ratios(self, found: Mapping[str, float]) -> Figures:
        """To the mean of the two measurements of the empty database."""

        def cpu(case: str) -> float:
            return found[f"{case}_worker_cpu_ms"] + found[f"{case}_server_cpu_ms"]

        usual = (cpu(_EMPTY) + cpu(_AGAIN)) / 2
        time_each = (1 / found[f"{_EMPTY}_runs_per_s"] + 1 / found[f"{_AGAIN}_runs_per_s"]) / 2
        ratios = {f"{_AGAIN}_cpu_ratio": ratio(cpu(_AGAIN), cpu(_EMPTY))}
        for case in self._cases:
            if case != _EMPTY:
                ratios[f"{case}_cpu_ratio"] = ratio(cpu(case), usual)
                ratios[f"{case}_time_ratio"] = ratio(1 / found[f"{case}_runs_per_s"], time_each)
        return ratios


def _name(case: str) -> str:
    return f"scale_{case}"


def lines(options: Options) -> tuple[Line, ...]:
    def of(case: str, heading: str) -> tuple[Line, ...]:
        return (
            Line(heading),
            Line("runs finished", f"{case}_runs_per_s", "1/s"),
            Line("CPU of the worker per run", f"{case}_worker_cpu_ms", "ms"),
            Line("CPU of PostgreSQL per run", f"{case}_server_cpu_ms", "ms"),
            Line("ratio: CPU per run, to the empty database (at most 1.3)", f"{case}_cpu_ratio"),
            Line("ratio: time per run, to the empty database", f"{case}_time_ratio"),
        )

    return (
        *of(_EMPTY, "one tenant, empty tables"),
        *(line for count in options.tenants for line in of(f"tenants_{count}", f"{count:,} tenants")),
        *(line for count in options.finished for line in of(f"finished_{count}", f"{count:,} finished runs")),
        *of(_AGAIN, "one tenant, empty tables, at the end of the round; its ratio is the noise"),
    )


def parse(arguments: list[str]) -> Options:
    usual = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=usual.rounds, help="interleaved rounds (%(default)s)")
    parser.add_argument("--runs", type=at_least_one, default=usual.runs, help="runs per phase, at most (%(default)s)")
    for name, text in {"tenants": "numbers of tenants", "finished": "numbers of finished runs"}.items():
        parser.add_argument(f"--{name}", type=at_least_one, nargs="*", default=getattr(usual, name), help=text)
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    if given.smoke:
        return msgspec.structs.replace(SMOKE, json=given.json)
    return Options(
        tenants=tuple(given.tenants),
        finished=tuple(given.finished),
        runs=given.runs,
        rounds=given.rounds,
        json=given.json,
    )


def main(options: Options) -> None:
    talk = Console(stderr=True)
    with machine.workplace() as home, machine.database(home) as server:
        bench = ScaleBench(server, home, options)
        bench.prepare(talk)
        told = conditions(
            options, postgres=on_uvloop(machine.settings(server)), filled=bench.filled, measured_tenant=CALLER.tenant
        )
        rounds = interleaved(options.rounds, bench.parts(), talk)
    report(record_of("scale", told, rounds), lines(options), json=options.json)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
