"""Many calls to a port at once, from one process, as a service makes them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from msgspec.structs import replace

from conformance.people import ACME, PLATFORM
from ports.context import AuthContext
from ports.errors import Conflict
from ports.ids import TenantId
from ports.tenant import Entitlements, TenantDirectory

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
