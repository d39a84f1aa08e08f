"""How soon a committed event is at its reader, over real sockets: `python -m tests.bench.events`.

Stack A's API is production's, in its own process; so are the PostgreSQL adapters and the server, which waits for the disk.
The writer is another process than the API: ours, which also reads the streams. The reference, measured in the same rounds,
is what the same server takes to hand a notification from one connection to another.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
import psutil
from msgspec import Struct
from rich.console import Console

from tests.bench import machine
from tests.bench.engine import on_uvloop
from tests.bench.events_load import Arrivals, open_runs, reading, targets, write
from tests.bench.figures import percentile, ratio
from tests.bench.harness import Figures, Line, Part, at_least_one, conditions, interleaved, record_of, report
from tests.support.ports import free_port
from tests.support.postgres import Server

_MANY: Final = (1, 100, 1_000)
_LINES: Final = (
    *(
        line
        for count in _MANY
        for line in (
            Line(f"{count:,} open streams, each of its own run"),
            Line("commit to client p50", f"p50_ms_{count}", "ms"),
            Line("commit to client p99", f"p99_ms_{count}", "ms"),
            Line("events committed", f"events_per_s_{count}", "1/s"),
            Line("CPU of the API per event", f"api_cpu_ms_{count}", "ms"),
        )
    ),
    Line("100 open streams, all of one run"),
    Line("commit to client p50", "p50_ms_fan", "ms"),
    Line("commit to client p99", "p99_ms_fan", "ms"),
    Line("CPU of the API per event and reader", "cpu_us_fan", "µs"),
    Line("memory"),
    Line("of the API per 1,000 open streams", "mib_per_1000", "MiB"),
    Line("reference: a notification from one connection to another"),
    Line("p50", "reference_p50_ms", "ms"),
    Line("p99", "reference_p99_ms", "ms"),
    Line("ratio: commit to client p50 at 100 streams, to the reference", "ratio"),
)


class Options(Struct, frozen=True, kw_only=True):
    rounds: int = 3
    seconds: float = 4.0
    """Of writing, per part."""
    per_second: int = 100
    """Events committed per second, over all runs; a tenth where one run has every reader."""
    most: int = 1_000
    """Streams at once at most."""
    json: str | None = None


SMOKE: Final = Options(rounds=1, seconds=0.5, per_second=40, most=100)


class EventsBench:
    def __init__(self, server: Server, home: Path, options: Options) -> None:
        self._server = server
        self._home = home
        self._options = options
        self._dsn_file = home / "database_url"
        self._dsn_file.write_text(server.dsn("ao_app"))

    def parts(self) -> list[tuple[str, Part]]:
        def streams(count: int) -> Part:
            return lambda _: self._measured(count)

        counts = [count for count in _MANY if count <= self._options.most]
        return [
            ("reference", lambda _: on_uvloop(notifications(self._server, self._options.seconds))),
            *((f"{count} streams", streams(count)) for count in counts),
            ("100 streams of one run", lambda _: self._fanned_out(100)),
            ("ratios", ratios),
        ]

    def _measured(self, count: int) -> Figures:
        with self._api() as (api, port):
            return on_uvloop(self._drive(count, api, port))

    async def _drive(self, count: int, api: psutil.Process, port: int) -> Figures:
        options = self._options
        async with open_runs(self._server) as runs:
            to = await targets(runs, count)
            before_streams = api.memory_info().rss
            arrivals = Arrivals()
            async with reading(port, to, arrivals):
                held = api.memory_info().rss - before_streams
                cpu, began = machine.cpu_seconds(api), time.perf_counter()
                await write(
                    runs, to, arrivals, per_second=options.per_second, seconds=options.seconds, readers_of_each=1
                )
                took = time.perf_counter() - began
                used = machine.cpu_seconds(api) - cpu
        found = {
            **latencies(arrivals, str(count)),
            f"events_per_s_{count}": ratio(arrivals.expected, took),
            f"api_cpu_ms_{count}": ratio(1_000 * used, arrivals.expected),
        }
        if count == max(one for one in _MANY if one <= options.most):
            found["mib_per_1000"] = ratio(held / 2**20 * 1_000, count)
        return found

    def _fanned_out(self, count: int) -> Figures:
        options = self._options

        async def drive(api: psutil.Process, port: int) -> Figures:
            async with open_runs(self._server) as runs:
                [target] = await targets(runs, 1)
                arrivals = Arrivals()
                several = [
                    msgspec.structs.replace(target, token=target.token + str(number // 50)) for number in range(count)
                ]
                async with reading(port, several, arrivals):
                    cpu = machine.cpu_seconds(api)
                    await write(
                        runs,
                        [target],
                        arrivals,
                        per_second=max(1, options.per_second // 10),
                        seconds=options.seconds,
                        readers_of_each=count,
                    )
                    used = machine.cpu_seconds(api) - cpu
            return {**latencies(arrivals, "fan"), "cpu_us_fan": ratio(1e6 * used, arrivals.expected)}

        with self._api() as (api, port):
            return on_uvloop(drive(api, port))

    @contextmanager
    def _api(self) -> Iterator[tuple[psutil.Process, int]]:
        port = free_port()
        environment = {"AGENTOS_DATABASE_URL_FILE": str(self._dsn_file)}
        command = machine.python("tests.bench.events_server", str(port))
        with machine.child(command, log=self._home / "api.log", environment=environment) as process:
            machine.wait_until_open(port)
            yield process, port


def latencies(arrivals: Arrivals, name: str) -> Figures:
    return {
        f"p50_ms_{name}": 1_000 * percentile(arrivals.delays, 0.5),
        f"p99_ms_{name}": 1_000 * percentile(arrivals.delays, 0.99),
    }


async def notifications(server: Server, seconds: float) -> Figures:
    """From the end of `NOTIFY` on one connection to its arrival on another, with a pause between two."""
    dsn = server.dsn("ao_app")
    telling, hearing = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    heard = asyncio.Event()
    arrived = 0.0

    def hear(*_: object) -> None:
        nonlocal arrived
        arrived = time.perf_counter()
        heard.set()

    delays: list[float] = []
    try:
        await hearing.add_listener("bench", hear)
        over = time.perf_counter() + seconds
        while time.perf_counter() < over:
            heard.clear()
            began = time.perf_counter()
            await telling.execute("SELECT pg_notify('bench', 'x')")
            await heard.wait()
            delays.append(arrived - began)
            await asyncio.sleep(0.01)
    finally:
        await telling.close()
        await hearing.close()
    return {
        "reference_p50_ms": 1_000 * percentile(delays, 0.5),
        "reference_p99_ms": 1_000 * percentile(delays, 0.99),
    }


def ratios(found: Mapping[str, float]) -> Figures:
    return {"ratio": ratio(found["p50_ms_100"], found["reference_p50_ms"])}


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.events", description=__doc__)
    counts = {"rounds": "interleaved rounds", "per_second": "events per second", "most": "streams at once, at most"}
    for name, text in counts.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=at_least_one,
            default=getattr(Options(), name),
            help=f"{text} (%(default)s)",
        )
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    if given.smoke:
        return msgspec.structs.replace(SMOKE, json=given.json)
    return Options(rounds=given.rounds, per_second=given.per_second, most=max(100, given.most), json=given.json)


def main(options: Options) -> None:
    talk = Console(stderr=True)
    with machine.workplace() as home, machine.database(home) as server:
        told = conditions(options, postgres=on_uvloop(machine.settings(server)))
        rounds = interleaved(options.rounds, EventsBench(server, home, options).parts(), talk)
    report(record_of("events", told, rounds), _LINES, json=options.json)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
