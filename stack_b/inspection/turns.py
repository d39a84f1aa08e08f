"""Turns of those whose texts are looked through where everybody waits. One owner: the loop of its gateway."""

import asyncio
from collections import deque

from ports.ids import TenantId


class Turns:
    """One of a tenant in a round of the loop, so that many at once hold everybody else up for no longer than one does."""

    def __init__(self) -> None:
        self._lines: dict[TenantId, deque[asyncio.Future[None]]] = {}
        """Of those who had a turn in this round: who waits for one."""

    async def take(self, tenant: TenantId) -> None:
        """Wait for a turn. It lasts until whoever has it waits for something."""
        line = self._lines.get(tenant)
        if line is None:
            self._begun(tenant, deque())
            return
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        await turn

    def _begun(self, tenant: TenantId, line: deque[asyncio.Future[None]]) -> None:
        self._lines[tenant] = line
        asyncio.get_running_loop().call_soon(self._over, tenant, line)

    def _over(self, tenant: TenantId, line: deque[asyncio.Future[None]]) -> None:
        """The next one's turn. Who has left meanwhile has none."""
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                # Behind the one that was just woken, and behind everybody who is ready.
                asyncio.get_running_loop().call_soon(self._begun, tenant, line)
                return
        del self._lines[tenant]
