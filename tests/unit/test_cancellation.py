"""Who a cancellation is for, also where it was raised anew by a library."""

import asyncio

import anyio
import anyio.lowlevel
import pytest

from ports.errors import Conflict, Internal
from stack_a.cancellation import answered

pytestmark = pytest.mark.anyio


async def gathering() -> None:
    """Raises a cancellation of its own making when it is cancelled."""
    await asyncio.gather(asyncio.Event().wait())


async def cancelled_by_nobody() -> None:
    raise asyncio.CancelledError


async def test_a_scope_ends_a_call_whose_library_raises_another_cancellation() -> None:
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(scope_cancelled_soon, scope)
            await answered(gathering())

    assert scope.cancelled_caught


async def scope_cancelled_soon(scope: anyio.CancelScope) -> None:
    await anyio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_call_that_nobody_cancelled_has_failed() -> None:
    with pytest.raises(Internal, match="nobody had cancelled"):
        await answered(cancelled_by_nobody())


async def test_a_task_is_cancelled_by_its_loop_as_ever() -> None:
    task = asyncio.create_task(answered(asyncio.Event().wait()))
    await anyio.lowlevel.checkpoint()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_answers_and_errors_pass() -> None:
    async def refused() -> None:
        raise Conflict("x")

    assert await answered(asyncio.sleep(0, "yes")) == "yes"
    with pytest.raises(Conflict):
        await answered(refused())
