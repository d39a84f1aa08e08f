"""Readiness: does every dependency answer? The same question, and the same words, on every surface."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from ports.errors import AgentOSError

Probe: TypeAlias = Callable[[], Awaitable[object]]
"""Asks one dependency for something cheap; raises when it does not answer."""

PROBE_SECONDS: Final = 2.0
OK: Final = "ok"


async def states_of(probes: Mapping[str, Probe]) -> dict[str, str]:
    """`ok` or what is wrong, by the dependency's name, sorted. All are asked at once, each for `PROBE_SECONDS` at most."""
    names = sorted(probes)
    states = await asyncio.gather(*(_state(probes[name]) for name in names))
    return dict(zip(names, states, strict=True))


async def _state(probe: Probe) -> str:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await probe()
    except TimeoutError:
        return f"no answer within {PROBE_SECONDS:g} s"
    except AgentOSError as error:
        return error.code
    return OK
