"""Five-step runs beside DBOS Transact's five-step workflows: `python -m tests.bench.engine_dbos`.

Model, tool, model, tool, model, each of which takes no time; the same PostgreSQL server, which waits for the disk, in the
same rounds; with one and two processes each, and 16 and 64 at once in all. Ours also write the event log and the audit,
enforce tenancy, and are created by a process of their own; theirs are called directly, which is their quickest way.
"""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import psutil
from msgspec import Struct
from rich.console import Console

from ports.errors import Unavailable
from tests.bench import machine
from tests.bench.engine import Spent, on_uvloop
from tests.bench.engine_load import open_load, read_phase
from tests.bench.environments import python_with
from tests.bench.figures import ratio
from tests.bench.harness import Figures, Line, Part, at_least_one, conditions, interleaved, record_of, report
from tests.support.postgres import Server, execute

VERSION: Final = "3.4.0"
DATABASE: Final = "bench_dbos"
AT_ONCE: Final = (16, 64)
PROCESSES: Final = (1, 2)
_PEER: Final = Path(__file__).with_name("dbos_peer.py")


class Options(Struct, frozen=True, kw_only=True):
    rounds: int = 3
    seconds: float = 6.0
    """Each of the measurements."""
    at_once: tuple[int, ...] = AT_ONCE
    processes: tuple[int, ...] = PROCESSES
    json: str | None = None


SMOKE: Final = Options(rounds=1, seconds=1.0, at_once=(4,), processes=(1,))


class Done(Struct, frozen=True):
    """What a process of DBOS says it did."""

    runs: int
    seconds: float
    cpu_s: float


class Measured(Struct, frozen=True, kw_only=True):
    runs: int
    seconds: float
    cpu_s: float
    server_cpu_s: float
    creating_cpu_s: float
    """Of our process that creates the runs; DBOS's create theirs themselves."""
    writes: int


def measured(runs: int, seconds: float, before: Spent, after: Spent) -> Measured:
    return Measured(
        runs=runs,
        seconds=seconds,
        cpu_s=after.workers - before.workers,
        server_cpu_s=after.server - before.server,
        creating_cpu_s=after.driver - before.driver,
        writes=after.writes - before.writes,
    )


class PeerBench:
    def __init__(self, server: Server, home: Path, options: Options, peer: Path | None) -> None:
        self._server = server
        self._home = home
        self._options = options
        self._peer = peer
        self._numbers = itertools.count(1)
        self._dsn_file = home / "database_url"
        self._dsn_file.write_text(server.dsn("ao_app"))

    def parts(self) -> list[tuple[str, Part]]:
        found: list[tuple[str, Part]] = []
        for at_once, processes in itertools.product(self._options.at_once, self._options.processes):
            name = f"{at_once} at once, {processes} process{'es' if processes > 1 else ''}"
            found.append((f"ours, {name}", self._part(at_once, processes, ours=True)))
            if self._peer is not None:
                found.append((f"DBOS, {name}", self._part(at_once, processes, ours=False)))
        return [*found, ("ratios", self._ratios)]

    def _part(self, at_once: int, processes: int, *, ours: bool) -> Part:
        def measure(_: Mapping[str, float]) -> Figures:
            done = self._ours(at_once, processes) if ours else self._theirs(at_once, processes)
            name = key("ours" if ours else "dbos", at_once, processes)
            return {
                name: ratio(done.runs, done.seconds),
                f"{name}_cpu_ms": ratio(1_000 * done.cpu_s, done.runs),
                f"{name}_server_ms": ratio(1_000 * done.server_cpu_s, done.runs),
                f"{name}_creating_ms": ratio(1_000 * done.creating_cpu_s, done.runs),
                f"{name}_writes": ratio(done.writes, done.runs),
            }

        return measure

    def _ours(self, at_once: int, processes: int) -> Measured:
        environment = {
            "AGENTOS_DATABASE_URL_FILE": str(self._dsn_file),
            "AGENTOS_WORKER_CONCURRENCY": str(max(1, at_once // processes)),
            "AGENTOS_BENCH_TOOL_TURNS": "2",
        }
        command, log = machine.python("tests.bench.engine_worker"), self._home / "worker.log"
        with ExitStack() as stack:
            workers = [
                stack.enter_context(machine.child(command, log=log, environment=environment, announces=True))
                for _ in range(processes)
            ]
            name = f"dbos-{next(self._numbers)}"
            before, after = on_uvloop(self._load(name, at_once, workers))
        phase = on_uvloop(read_phase(self._server, name))
        return measured(phase.runs, phase.seconds, before, after)

    async def _load(self, name: str, at_once: int, workers: Sequence[psutil.Process]) -> tuple[Spent, Spent]:
        """What was spent before the phase and after it."""
        window, seconds = 2 * at_once, self._options.seconds
        async with open_load(self._server) as load:
            await load.saturate(f"{name}-warm-up", runs=at_once, window=window, seconds=seconds)
            before = await self._spent(workers)
            await load.saturate(name, runs=1_000_000, window=window, seconds=seconds)
            return before, await self._spent(workers)

    async def _spent(self, workers: Sequence[psutil.Process]) -> Spent:
        return Spent(
            workers=sum(machine.cpu_seconds(worker) for worker in workers),
            server=machine.server_cpu_seconds(self._server),
            driver=machine.cpu_seconds(psutil.Process()),
            writes=await machine.writes(self._server),
        )

    def _theirs(self, at_once: int, processes: int) -> Measured:
        assert self._peer is not None, "left out where it can't be had"
        url = self._server.dsn("postgres", DATABASE)
        with ExitStack() as stack:
            peers = [
                stack.enter_context(dbos(self._peer, url, max(1, at_once // processes), self._home))
                for _ in range(processes)
            ]
            before = on_uvloop(self._spent(()))
            for peer in peers:
                _write(peer, f"{self._options.seconds}\n")
            done = [msgspec.json.decode(_line(peer, self._home), type=Done) for peer in peers]
            after = on_uvloop(self._spent(()))
        found = measured(sum(one.runs for one in done), max(one.seconds for one in done), before, after)
        return msgspec.structs.replace(found, cpu_s=sum(one.cpu_s for one in done), creating_cpu_s=0.0)

    def _ratios(self, found: Mapping[str, float]) -> Figures:
        if self._peer is None:
            return {}
        return {
            key("ratio", at_once, processes): ratio(
                found[key("ours", at_once, processes)], found[key("dbos", at_once, processes)]
            )
            for at_once, processes in itertools.product(self._options.at_once, self._options.processes)
        }


def key(what: str, at_once: int, processes: int) -> str:
    return f"{what}_{at_once}_{processes}"


def lines(options: Options) -> list[Line]:
    found: list[Line] = []
    for at_once, processes in itertools.product(options.at_once, options.processes):
        ours, theirs = key("ours", at_once, processes), key("dbos", at_once, processes)
        found += [
            Line(f"{at_once} at once, {processes} process{'es' if processes > 1 else ''}"),
            Line("our five-step runs", ours, "1/s"),
            Line("  CPU of the workers per run", f"{ours}_cpu_ms", "ms"),
            Line("  CPU of creating, per run", f"{ours}_creating_ms", "ms"),
            Line("  CPU of PostgreSQL per run", f"{ours}_server_ms", "ms"),
            Line("  transactions that write, per run", f"{ours}_writes"),
            Line("DBOS's five-step workflows", theirs, "1/s"),
            Line("  CPU of its processes per workflow", f"{theirs}_cpu_ms", "ms"),
            Line("  CPU of PostgreSQL per workflow", f"{theirs}_server_ms", "ms"),
            Line("  transactions that write, per workflow", f"{theirs}_writes"),
            Line("ratio, ours to DBOS's", key("ratio", at_once, processes)),
        ]
    return found


@contextmanager
def dbos(python: Path, url: str, concurrency: int, home: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of DBOS, warm."""
    with (home / "dbos.log").open("ab") as log:
        process = subprocess.Popen(
            [str(python), str(_PEER), url, str(concurrency)],
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home)},
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        if _line(process, home).strip() != machine.READY:
            raise Unavailable(f"DBOS did not start: {(home / 'dbos.log').read_text()[-2_000:]}")
        yield process
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None, "it was opened with one"
    process.stdin.write(line)
    process.stdin.flush()


def _line(process: "subprocess.Popen[str]", home: Path) -> str:
    assert process.stdout is not None, "it was opened with one"
    line = process.stdout.readline()
    if not line:
        raise Unavailable(f"DBOS ended: {(home / 'dbos.log').read_text()[-2_000:]}")
    return line


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine_dbos", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=Options().rounds, help="interleaved (%(default)s)")
    parser.add_argument("--seconds", type=float, default=Options().seconds, help="per measurement (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    if given.smoke:
        return msgspec.structs.replace(SMOKE, json=given.json)
    return Options(rounds=given.rounds, seconds=given.seconds, json=given.json)


def main(options: Options) -> None:
    talk = Console(stderr=True)
    missing: list[str] = []
    peer: Path | None = None
    try:
        peer = python_with("dbos", VERSION)
    except Unavailable as error:
        missing.append(f"DBOS Transact, to compare with: {error.message}")
    with machine.workplace() as home, machine.database(home) as server:
        on_uvloop(execute(server.dsn("postgres", "postgres"), f"CREATE DATABASE {DATABASE}"))
        told = conditions(options, postgres=on_uvloop(machine.settings(server)), dbos=VERSION)
        rounds = interleaved(options.rounds, PeerBench(server, home, options, peer).parts(), talk)
    report(record_of("engine_dbos", told, rounds, missing=missing), lines(options), json=options.json)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
