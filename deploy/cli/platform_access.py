"""Administration for commands: what the admin API works on, opened by the operator and without a service."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from adapters.postgres.tenant_export import Open, Tell, as_it_is, nobody
from deploy.administration.platform import Platform
from deploy.cli.io import Io
from deploy.internal import open_platform

ResultT = TypeVar("ResultT")


def with_platform(
    io: Io, act: Callable[[Platform], Awaitable[ResultT]], *, opened: Open = as_it_is, tell: Tell = nobody
) -> ResultT:
    async def acted() -> ResultT:
        async with open_platform(io.node, opened=opened, tell=tell) as platform:
            return await act(platform)

    return asyncio.run(acted())
