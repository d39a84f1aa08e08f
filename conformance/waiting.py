"""Waiting for a call that ends by time, without knowing whose clock it goes by."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import anyio
import anyio.lowlevel

PATIENCE_S: Final = 10


async def while_time_passes(
    call: Callable[[], Awaitable[object]], advance: Callable[[timedelta], Awaitable[None]], step: timedelta
) -> Exception | None:
    """What `call` raised, or None, with time advancing by `step` again and again until it has ended.

    An adapter may wait by the harness' time or by the machine's; either way one of them gets there.
    """
    outcome: list[Exception | None] = []

    async def run() -> None:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller asserts which it must be
            outcome.append(error)
        else:
            outcome.append(None)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.lowlevel.checkpoint()
            while not outcome:
                await advance(step)
                await anyio.lowlevel.checkpoint()
    return outcome[0]
