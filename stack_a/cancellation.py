"""Cancellations that name nobody.

A cancel scope knows a cancellation of its own by what it says. Some libraries raise one of their own making in place of
the one that reached them (`asyncio.gather` does), or out of the blue. Nobody above knows that one: it would end every task
group up to the worker's own, without a word.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import anyio
import anyio.lowlevel

from ports.errors import Internal

T = TypeVar("T")


async def answered(call: Awaitable[T]) -> T:
    """What `call` gives or raises; cancelled only by whom it concerns.

    Raises:
        Internal: the call ended as if cancelled, and nobody had cancelled it. Whether it acted is unknown.
    """
    try:
        return await call
    except anyio.get_cancelled_exc_class():
        # Where a scope did, this raises that cancellation.
        await anyio.lowlevel.checkpoint_if_cancelled()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the event loop did: it is closing
        raise Internal("a call ended as if it was cancelled, and nobody had cancelled it") from None
