"""Many calls to a port at once, from one process, as a service makes them; and the benches that consist of that."""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict, replace
from rich.console import Console

from conformance.people import ACME, PLATFORM
from ports.context import AuthContext
from ports.errors import Conflict
from ports.ids import TenantId
from ports.tenant import Entitlements, TenantDirectory
from tests.bench import machine
from tests.bench.engine import on_uvloop
from tests.bench.harness import Line, Part, at_least_one, conditions, interleaved, record_of, report
from tests.support.postgres import Server


class Options(Struct, frozen=True, kw_only=True):
    calls: int = 3_000
    concurrency: int = 64
    rounds: int = 5
    json: str | None = None


_SMOKE: Final = Options(calls=64, concurrency=8, rounds=1)
_UNBOUNDED: Final = Entitlements(runs_per_minute=1_000_000, max_queued_runs=1_000_000)


def callers(many: int) -> list[AuthContext]:
    """One of each tenant."""
    return [replace(ACME, tenant=TenantId(f"tnt_bench-{number}")) for number in range(many)]


async def make_tenants(directory: TenantDirectory, whom: Sequence[AuthContext]) -> None:
    """Those that are not there yet, with limits that no bench reaches."""
    for one in whom:
        try:
            await directory.create(PLATFORM, one.tenant, name="Bench", entitlements=_UNBOUNDED)
        except Conflict:
            continue


async def per_second(act: Callable[[int], Awaitable[object]], calls: int, concurrency: int) -> float:
    """`act` is given numbers from 0."""
    numbers = iter(range(calls))

    async def some() -> None:
        for number in numbers:
            await act(number)

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(concurrency)))
    return calls / (time.perf_counter() - began)


def parse(bench: str, description: str | None, arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{bench}", description=description)
    for name, text in {"calls": "per figure", "concurrency": "callers at once", "rounds": "interleaved rounds"}.items():
        parser.add_argument(
            f"--{name}", type=at_least_one, default=getattr(Options(), name), help=f"{text} (%(default)s)"
        )
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    if given.smoke:
        return replace(_SMOKE, json=given.json)
    return Options(**{name: getattr(given, name) for name in asdict(Options())})


def measure(
    bench: str, options: Options, parts: Callable[[Server, Options], list[tuple[str, Part]]], lines: Sequence[Line]
) -> None:
    """On a server of its own: the rounds, and the report of them."""
    with machine.workplace() as home, machine.database(home) as server:
        told = conditions(options, postgres=on_uvloop(machine.settings(server)))
        rounds = interleaved(options.rounds, parts(server, options), Console(stderr=True))
    report(record_of(bench, told, rounds), lines, json=options.json)
