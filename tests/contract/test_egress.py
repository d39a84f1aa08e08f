"""The kit over the guarded way out."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from adapters.egress import GuardedEgress
from adapters.egress.exchange import open_transport
from adapters.egress.guard import EgressRules, Guard
from conformance.egress import EgressContract
from conformance.people import TENANTS
from ports.egress import EgressPort
from ports.ids import TenantId
from ports.tenant import ALL
from tests.support.egress import tenants


class SeenTransport(httpx.AsyncBaseTransport):
    """Another one, and where it was told to go. It goes to loopback only, whatever a broken guard lets out."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.reached: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.reached.append(request.url.host)
        if not request.url.host.startswith("127."):
            raise httpx.ConnectError("not from a test", request=request)
        return await self.inner.handle_async_request(request)


class EgressHarness:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._private: set[tuple[str, int]] = set()
        self._entitled: dict[TenantId, tuple[str, ...]] = dict.fromkeys(TENANTS, ALL)
        self._addresses: tuple[tuple[str, ...], ...] = (("127.0.0.1",), ("127.0.0.1",))
        self._asked: list[str] = []
        self.transport: SeenTransport

    async def resolve(self, host: str, _port: int) -> tuple[str, ...]:
        again = host in self._asked
        self._asked.append(host)
        return self._addresses[again]

    def resolves(self, *addresses: str, then: tuple[str, ...] = ()) -> None:
        self._addresses = (addresses, then or addresses)

    def lift(self, host: str, port: int) -> None:
        self._private.add((host, port))

    def entitle(self, tenant: TenantId, *hosts: str) -> None:
        self._entitled[tenant] = hosts

    def asked(self) -> list[str]:
        return self._asked

    def reached(self) -> list[str]:
        return self.transport.reached

    async def open(self) -> EgressPort:
        self.transport = SeenTransport(await self.inner())
        return self.made(EgressRules(private=frozenset(self._private)))

    async def inner(self) -> httpx.AsyncBaseTransport:
        return await self._stack.enter_async_context(open_transport(""))

    def made(self, rules: EgressRules) -> EgressPort:
        return GuardedEgress(Guard(rules, self.resolve), self.directory(), self.transport)

    def directory(self) -> Any:
        return tenants(self._entitled)


class TestGuardedEgress(EgressContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[EgressHarness]:
        async with AsyncExitStack() as stack:
            yield EgressHarness(stack)
