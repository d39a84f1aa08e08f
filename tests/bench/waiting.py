"""What runs that wait cost: `python -m tests.bench.waiting`.

The API and a worker are production's, each in a process of its own; the worker has one slot, and that is taken. Runs are
created over HTTP and stay queued. The reference is the same node before they came.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import msgspec
import psutil
from msgspec import Struct
from rich.console import Console

from ports.errors import Unavailable
from tests.bench import machine
from tests.bench.engine import on_uvloop
from tests.bench.engine_load import AGENT, CALLER, open_load
from tests.bench.figures import ratio
from tests.bench.harness import Figures, Line, Part, at_least_one, conditions, interleaved, record_of, report
from tests.support.ports import free_port
from tests.support.postgres import Server, fetch

_TOOL_MS: Final = 3_600_000
"""Longer than the bench: the run that has the slot keeps it."""
_START_SECONDS: Final = 15.0
_CREATING: Final = 16
_ACCEPTED: Final = 202

_LINES: Final = (
    Line("with nothing waiting"),
    Line("memory of the API", "api_mib", "MiB"),
    Line("memory of the worker", "worker_mib", "MiB"),
    Line("CPU of worker and API", "idle_cpu_ms_per_s", "ms/s"),
    Line("CPU of PostgreSQL", "idle_server_ms_per_s", "ms/s"),
    Line("what 1,000 waiting runs add"),
    Line("memory of the API", "api_mib_per_1000", "MiB"),
    Line("memory of the worker", "worker_mib_per_1000", "MiB"),
    Line("tables and indexes", "tables_mib_per_1000", "MiB"),
    Line("while they wait, all of them"),
    Line("CPU of worker and API", "waiting_cpu_ms_per_s", "ms/s"),
    Line("CPU of PostgreSQL", "waiting_server_ms_per_s", "ms/s"),
)


class Options(Struct, frozen=True, kw_only=True):
    runs: int = 5_000
    rounds: int = 1
    seconds: float = 8.0
    """For which idleness is measured: some sweeps long."""
    json: str | None = None


SMOKE: Final = Options(runs=50, seconds=1.0)


class Held(Struct, frozen=True, kw_only=True):
    """What is in use at a moment."""

    api: int
    worker: int
    tables: int


class WaitingBench:
    def __init__(self, server: Server, home: Path, options: Options) -> None:
        self._server = server
        self._home = home
        self._options = options
        self._numbers = itertools.count(1)
        self._dsn_file = home / "database_url"
        self._dsn_file.write_text(server.dsn("ao_app"))

    def parts(self) -> list[tuple[str, Part]]:
        return [("waiting runs", self.waiting)]

    def waiting(self, _: Mapping[str, float]) -> Figures:
        with self._processes() as (api, port, worker):
            return on_uvloop(self._drive(api, port, worker))

    async def _drive(self, api: psutil.Process, port: int, worker: psutil.Process) -> Figures:
        options = self._options
        async with open_load(self._server) as load, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            # The first has the slot; the API's caches and pools are warm after some more.
            await self._create(client, 2 * _CREATING)
            await self._until_one_runs()
            idle, idle_server = await self._idle([api, worker])
            before = await self._held(api, worker)
            await self._create(client, options.runs)
            waiting, waiting_server = await self._idle([api, worker])
            after = await self._held(api, worker)
            if await load.open() < options.runs:
                raise Unavailable("runs did not wait; see the worker's log")

        def per_1000(more: int) -> float:
            return ratio(more / 2**20 * 1_000, options.runs)

        await self._end_all()
        return {
            "api_mib": before.api / 2**20,
            "worker_mib": before.worker / 2**20,
            "idle_cpu_ms_per_s": idle,
            "idle_server_ms_per_s": idle_server,
            "api_mib_per_1000": per_1000(after.api - before.api),
            "worker_mib_per_1000": per_1000(after.worker - before.worker),
            "tables_mib_per_1000": per_1000(after.tables - before.tables),
            "waiting_cpu_ms_per_s": waiting,
            "waiting_server_ms_per_s": waiting_server,
        }

    async def _create(self, client: httpx.AsyncClient, count: int) -> None:
        keys = (f"waiting-{next(self._numbers)}" for _ in range(count))

        async def some() -> None:
            for key in keys:
                answer = await client.post(
                    f"/v1/agents/{AGENT}/runs",
                    headers={
                        "authorization": f"Bearer {CALLER.tenant}/{CALLER.principal}",
                        "idempotency-key": key,
                    },
                    json={"input": "Probe once."},
                )
                if answer.status_code != _ACCEPTED:
                    raise Unavailable(f"a run was refused: {answer.status_code} {answer.text[:200]}")

        async with asyncio.TaskGroup() as group:
            for _ in range(_CREATING):
                group.create_task(some())

    async def _until_one_runs(self) -> None:
        query = "SELECT FROM runs r JOIN steps s ON s.run_id = r.id WHERE r.status = 'running' AND s.kind = 'tool'"
        async with asyncio.timeout(_START_SECONDS):
            while not await fetch(self._server.dsn("ao_admin"), query):  # noqa: ASYNC110 - it starts in another process
                await asyncio.sleep(0.02)

    async def _idle(self, processes: list[psutil.Process]) -> tuple[float, float]:
        """Milliseconds of CPU per second, of `processes` and of the server, while nobody asks for anything."""
        ours, servers = sum(map(machine.cpu_seconds, processes)), machine.server_cpu_seconds(self._server)
        began = time.monotonic()
        await asyncio.sleep(self._options.seconds)
        took = time.monotonic() - began
        ours = sum(map(machine.cpu_seconds, processes)) - ours
        return 1_000 * ours / took, 1_000 * (machine.server_cpu_seconds(self._server) - servers) / took

    async def _held(self, api: psutil.Process, worker: psutil.Process) -> Held:
        [row] = await fetch(
            self._server.dsn("ao_admin"),
            "SELECT sum(pg_total_relation_size(oid))::bigint AS bytes FROM pg_class "
            "WHERE relnamespace = 'agentos'::regnamespace AND relkind = 'r'",
        )
        return Held(api=api.memory_info().rss, worker=worker.memory_info().rss, tables=row["bytes"])

    async def _end_all(self) -> None:
        """So that the next round, and the worker's own end, find nothing to do."""
        await fetch(
            self._server.dsn("ao_admin"),
            "UPDATE runs SET status = 'cancelled', worker_id = NULL, finished_at = now() "
            "WHERE status IN ('queued', 'running')",
        )

    @contextmanager
    def _processes(self) -> Iterator[tuple[psutil.Process, int, psutil.Process]]:
        port = free_port()
        environment = {"AGENTOS_DATABASE_URL_FILE": str(self._dsn_file)}
        slow = {**environment, "AGENTOS_WORKER_CONCURRENCY": "1", "AGENTOS_BENCH_TOOL_MS": str(_TOOL_MS)}
        serving = machine.python("tests.bench.events_server", str(port))
        working = machine.python("tests.bench.engine_worker")
        with (
            machine.child(serving, log=self._home / "api.log", environment=environment) as api,
            machine.child(working, log=self._home / "worker.log", environment=slow, announces=True) as worker,
        ):
            machine.wait_until_open(port)
            yield api, port, worker


def parse(arguments: list[str]) -> Options:
    usual = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.waiting", description=__doc__)
    for name, text in {"runs": "runs that wait", "rounds": "rounds"}.items():
        parser.add_argument(f"--{name}", type=at_least_one, default=getattr(usual, name), help=f"{text} (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    if given.smoke:
        return msgspec.structs.replace(SMOKE, json=given.json)
    return Options(runs=given.runs, rounds=given.rounds, json=given.json)


def main(options: Options) -> None:
    talk = Console(stderr=True)
    with machine.workplace() as home, machine.database(home) as server:
        told = conditions(options, postgres=on_uvloop(machine.settings(server)))
        rounds = interleaved(options.rounds, WaitingBench(server, home, options).parts(), talk)
    report(record_of("waiting", told, rounds), _LINES, json=options.json)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
