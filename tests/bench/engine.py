"""What the run engine does with an instant model and one instant tool call: `python -m tests.bench.engine`.

The worker is production's, in its own process; so are the PostgreSQL adapters and the server, which waits for the disk.
Runs are created by `stack_a.runs.start.Intake`, without HTTP. The reference, measured in the same rounds, is what the same
server commits per second when asked for nothing but small synchronous transactions.
"""

import argparse
import asyncio
import itertools
import secrets
import sys
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import psutil
import uvloop
from msgspec import Struct
from rich.console import Console

from deploy.roots.start import start_is_over
from ports.context import AuthContext
from tests.bench import machine
from tests.bench.engine_load import CALLER, Phase, open_load, read_phase
from tests.bench.figures import ratio
from tests.bench.harness import (
    Figures,
    Line,
    Part,
    at_least_one,
    conditions,
    interleaved,
    record_of,
    report,
)
from tests.bench.reference import commits_per_second, create_reference
from tests.support.postgres import Server

T = TypeVar("T")

_LINES: Final = (
    Line("saturated"),
    Line("runs finished", "runs_per_s", "1/s"),
    Line("transactions per run, reading ones included", "commits_per_run"),
    Line("transactions per run that write", "writes_per_run"),
    Line("CPU of the workers per run", "worker_cpu_ms", "ms"),
    Line("CPU of PostgreSQL per run", "server_cpu_ms", "ms"),
    Line("CPU of creating, per run", "driver_cpu_ms", "ms"),
    Line("at half of that load"),
    Line("runs created", "half_rate", "1/s"),
    Line("claim latency p50 (run.created → run.started)", "claim_p50_ms", "ms"),
    Line("claim latency p99", "claim_p99_ms", "ms"),
    Line("whole run p50", "end_p50_ms", "ms"),
    Line("transactions per run, reading ones included", "half_commits_per_run"),
    Line("reference: the same server, nothing but small synchronous transactions"),
    Line("transactions", "reference_commits_per_s", "1/s"),
    Line("ratio: runs/s × transactions per run, to the reference", "ratio"),
    Line("the same, writing transactions only", "writes_ratio"),
)


class Options(Struct, frozen=True, kw_only=True):
    runs: int = 600
    """Per phase at most."""
    concurrency: int = 32
    """Runs at once per worker, as in production, and connections of the reference."""
    workers: int = 1
    rounds: int = 3
    seconds: float = 6.0
    """A phase creates runs for this long at most."""
    reference_seconds: float = 2.0
    warm_up: int = 32
    """Runs before each phase that are not measured."""
    json: str | None = None


SMOKE: Final = Options(runs=12, concurrency=4, rounds=1, seconds=2.0, reference_seconds=0.3, warm_up=2)


class Spent(Struct, frozen=True, kw_only=True):
    """What was used up to a moment."""

    workers: float
    server: float
    driver: float
    writes: int


class Measured(Struct, frozen=True, kw_only=True):
    phase: Phase
    before: Spent
    after: Spent
    commits_per_run: float
    """Over the whole life of the workers, warming up included."""


class EngineBench:
    def __init__(
        self, server: Server, home: Path, options: Options, callers: Sequence[AuthContext] = (CALLER,)
    ) -> None:
        self._server = server
        self._home = home
        self._callers = callers
        self._options = options
        self._numbers = itertools.count(1)
        self._dsn_file = home / "database_url"
        self._dsn_file.write_text(server.dsn("ao_app"))

    def parts(self) -> list[tuple[str, Part]]:
        return [
            ("reference", self.reference),
            ("saturated", self.saturated),
            ("half of that load", self.half_load),
            ("ratios", ratios),
        ]

    def reference(self, _: Mapping[str, float]) -> Figures:
        options = self._options
        counting = commits_per_second(self._server, connections=options.concurrency, seconds=options.reference_seconds)
        return {"reference_commits_per_s": on_uvloop(counting)}

    def saturated(self, _: Mapping[str, float]) -> Figures:
        found = self._measured(None)
        runs, before, after = found.phase.runs, found.before, found.after
        return {
            "runs_per_s": ratio(runs, found.phase.seconds),
            "commits_per_run": found.commits_per_run,
            "writes_per_run": ratio(after.writes - before.writes, runs),
            "worker_cpu_ms": ratio(1_000 * (after.workers - before.workers), runs),
            "server_cpu_ms": ratio(1_000 * (after.server - before.server), runs),
            "driver_cpu_ms": ratio(1_000 * (after.driver - before.driver), runs),
        }

    def half_load(self, so_far: Mapping[str, float]) -> Figures:
        rate = so_far["runs_per_s"] / 2
        found = self._measured(rate)
        return {
            "half_rate": rate,
            "claim_p50_ms": found.phase.claim_p50_ms,
            "claim_p99_ms": found.phase.claim_p99_ms,
            "end_p50_ms": found.phase.end_p50_ms,
            "half_commits_per_run": found.commits_per_run,
        }

    def cost(self) -> Figures:
        """Of a run with the engine saturated, on fresh workers. The database may hold runs of another bench."""
        name = f"cost-{secrets.token_hex(8)}"
        with self._workers() as workers:
            before, after, _ = on_uvloop(self._drive(name, None, workers))
        phase = on_uvloop(read_phase(self._server, name))
        return {
            "runs_per_s": ratio(phase.runs, phase.seconds),
            "worker_cpu_ms": ratio(1_000 * (after.workers - before.workers), phase.runs),
            "server_cpu_ms": ratio(1_000 * (after.server - before.server), phase.runs),
        }

    def _measured(self, per_second: float | None) -> Measured:
        """One phase, saturated or at a rate, on fresh workers: when they end, PostgreSQL has counted all they did."""
        name = f"phase-{next(self._numbers)}"
        earlier = on_uvloop(machine.commits(self._server))
        with self._workers() as workers:
            before, after, polls = on_uvloop(self._drive(name, per_second, workers))
        commits = on_uvloop(machine.commits(self._server)) - earlier - polls
        phase = on_uvloop(read_phase(self._server, name))
        per_run = ratio(commits, phase.runs + self._options.warm_up)
        return Measured(phase=phase, before=before, after=after, commits_per_run=per_run)

    async def _drive(
        self, name: str, per_second: float | None, workers: list[psutil.Process]
    ) -> tuple[Spent, Spent, int]:
        """What was spent before and after the phase, and how often we looked."""
        options = self._options
        # Twice what the workers take: they never wait for us.
        window = 2 * options.concurrency * options.workers
        async with open_load(self._server, self._callers) as load:
            # It stands for the API, which does the same.
            start_is_over()
            await load.saturate(f"{name}-warm-up", runs=options.warm_up, window=window, seconds=options.seconds)
            before = await self._spent(workers)
            if per_second is None:
                await load.saturate(name, runs=options.runs, window=window, seconds=options.seconds)
            else:
                runs = max(1, min(options.runs, int(per_second * options.seconds)))
                await load.pace(name, runs=runs, per_second=per_second, seed=1)
            return before, await self._spent(workers), load.polls

    async def _spent(self, workers: list[psutil.Process]) -> Spent:
        return Spent(
            workers=sum(machine.cpu_seconds(worker) for worker in workers),
            server=machine.server_cpu_seconds(self._server),
            driver=machine.cpu_seconds(psutil.Process()),
            writes=await machine.writes(self._server),
        )

    @contextmanager
    def _workers(self) -> Iterator[list[psutil.Process]]:
        environment = {
            "AGENTOS_DATABASE_URL_FILE": str(self._dsn_file),
            "AGENTOS_WORKER_CONCURRENCY": str(self._options.concurrency),
        }
        command, log = machine.python("tests.bench.engine_worker"), self._home / "worker.log"
        with ExitStack() as stack:
            yield [
                stack.enter_context(machine.child(command, log=log, environment=environment, announces=True))
                for _ in range(self._options.workers)
            ]


def ratios(found: Mapping[str, float]) -> Figures:
    """How near the engine comes to what its database could do."""
    reference = found["reference_commits_per_s"]
    return {
        "ratio": ratio(found["runs_per_s"] * found["commits_per_run"], reference),
        "writes_ratio": ratio(found["runs_per_s"] * found["writes_per_run"], reference),
    }


def on_uvloop(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__)
    counts = {
        "runs": "runs per phase, at most",
        "concurrency": "runs at once per worker",
        "workers": "worker processes",
        "rounds": "interleaved rounds",
    }
    for name, text in counts.items():
        parser.add_argument(
            f"--{name}", type=at_least_one, default=getattr(Options(), name), help=f"{text} (%(default)s)"
        )
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    if given.smoke:
        return msgspec.structs.replace(SMOKE, json=given.json)
    return Options(
        runs=given.runs, concurrency=given.concurrency, workers=given.workers, rounds=given.rounds, json=given.json
    )


def main(options: Options) -> None:
    talk = Console(stderr=True)
    with machine.workplace() as home, machine.database(home) as server:
        on_uvloop(create_reference(server, connections=options.concurrency))
        told = conditions(options, postgres=on_uvloop(machine.settings(server)))
        rounds = interleaved(options.rounds, EngineBench(server, home, options).parts(), talk)
    report(record_of("engine", told, rounds), _LINES, json=options.json)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
