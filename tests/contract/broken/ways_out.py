"""Broken ways out. They wait for real sockets, so their loop keeps real time."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import httpx
import pytest
from msgspec.structs import replace

from adapters.egress import GuardedEgress
from adapters.egress.addresses import address_is_public, address_of
from adapters.egress.guard import Destination, EgressRules, Guard
from adapters.egress.url import Url, denied
from conformance.egress import EgressContract
from ports.context import EGRESS_NODE, AuthContext
from ports.egress import MAX_BODY_BYTES, MAX_TIMEOUT, EgressPort, Fetched
from ports.errors import PermissionDenied, Unavailable
from tests.contract.broken.mutant import Mutant
from tests.contract.test_egress import EgressHarness


class BrokenEgressHarness(EgressHarness):
    def __init__(self, stack: AsyncExitStack, port: type[GuardedEgress], guard: type[Guard]) -> None:
        super().__init__(stack)
        self._port, self._guard = port, guard

    async def inner(self) -> httpx.AsyncBaseTransport:
        """Without certificates: nothing here speaks TLS, and reading the public ones takes longer than all of a test."""
        transport = httpx.AsyncHTTPTransport(
            verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        return await self._stack.enter_async_context(transport)

    def made(self, rules: EgressRules) -> EgressPort:
        return self._port(self._guard(rules, self.resolve), self.directory(), self.transport)


class BrokenEgress(Mutant, EgressContract):
    port: ClassVar[type[GuardedEgress]] = GuardedEgress
    guard: ClassVar[type[Guard]] = Guard

    @pytest.fixture
    def anyio_backend(self) -> str:  # real sockets need real time
        return "asyncio"

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenEgressHarness]:
        async with AsyncExitStack() as stack:
            yield BrokenEgressHarness(stack, self.port, self.guard)


class TestIsHonest(BrokenEgress):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class FailsWhatFailed(GuardedEgress):
    async def fetch(self, auth: AuthContext, url: str, **more: Any) -> Fetched:
        found = await super().fetch(auth, url, **more)
        if found.status >= 400:
            raise Unavailable("the server failed", code="upstream_error")
        return found


class TestFailsWhatFailed(BrokenEgress):
    port = FailsWhatFailed
    caught_by = frozenset({"test_an_answer_comes_as_it_was_given"})


class ReadsUrlsAsClientsDo(GuardedEgress):
    async def _admitted(self, auth: AuthContext, text: str) -> Destination:
        try:
            found = httpx.URL(text)
            url = Url(scheme=found.scheme, host=found.host, port=found.port or 80, target="/")
        except httpx.InvalidURL:
            return await super()._admitted(auth, text)
        if found.scheme != "http" or "." not in found.host.strip(".") or found.userinfo == b"":
            return await super()._admitted(auth, text)
        return Destination(url=url, addresses=("93.184.216.34",))


class TestReadsUrlsAsClientsDo(BrokenEgress):
    """A user name before the host is read over."""

    port = ReadsUrlsAsClientsDo
    caught_by = frozenset({"test_a_url_that_can_be_read_in_two_ways_is_denied"})


class AsksTheLibrary(Guard):
    async def admit(self, url: Url) -> Destination:
        if (url.host, url.port) in self._rules.private:
            return await super().admit(url)
        addresses = await self._addresses(url)
        for one in addresses:
            if not ipaddress.ip_address(one.partition("%")[0] if one != "garbage" else "::").is_global:
                raise denied("address", "the host is not public")
        if address_of(url.host) is None and all(address_is_public(ipaddress.ip_address(one)) for one in addresses):
            return await super().admit(url)
        return Destination(url=url, addresses=addresses)


class TestAsksTheLibrary(BrokenEgress):
    guard = AsksTheLibrary
    caught_by = frozenset({"test_a_host_with_an_address_that_is_not_public_is_denied"})


class LiftsTheHost(Guard):
    """Whatever the port."""

    async def admit(self, url: Url) -> Destination:
        for host, port in self._rules.private:
            if host == url.host:
                found = await super().admit(replace_port(url, port))
                return Destination(url=url, addresses=found.addresses)
        return await super().admit(url)


def replace_port(url: Url, port: int) -> Url:
    return Url(scheme=url.scheme, host=url.host, port=port, target=url.target)


class TestLiftsTheHost(BrokenEgress):
    guard = LiftsTheHost
    caught_by = frozenset({"test_what_the_operator_lifted_is_that_host_and_port_and_no_other"})


class ResolvesAgain(Guard):
    async def admit(self, url: Url) -> Destination:
        await super().admit(url)
        return Destination(url=url, addresses=await self._addresses(url))


class TestResolvesAgain(BrokenEgress):
    guard = ResolvesAgain
    caught_by = frozenset({"test_a_name_is_resolved_once_and_reached_where_that_led"})


class FollowsRedirects(GuardedEgress):
    async def fetch(self, auth: AuthContext, url: str, **more: Any) -> Fetched:
        found = await super().fetch(auth, url, **more)
        if found.header("location"):
            await super().fetch(auth, found.header("location"), **more)
        return found


class TestFollowsRedirects(BrokenEgress):
    port = FollowsRedirects
    caught_by = frozenset({"test_a_redirect_is_told_and_not_followed"})


class SendsCookiesBack(GuardedEgress):
    async def fetch(self, auth: AuthContext, url: str, **more: Any) -> Fetched:
        found = await super().fetch(auth, url, **more)
        if found.header("set-cookie"):
            self._transport = _WithCookie(self._transport)
        return found


class _WithCookie(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Cookie"] = "a=b"
        return await self._inner.handle_async_request(request)


class TestSendsCookiesBack(BrokenEgress):
    port = SendsCookiesBack
    caught_by = frozenset({"test_neither_a_proxy_nor_a_cookie_is_used"})


class TakesAnyTenant(GuardedEgress):
    async def _admitted(self, auth: AuthContext, text: str) -> Destination:
        return await super()._admitted(replace(auth, scopes=frozenset({EGRESS_NODE})), text)


class TestTakesAnyTenant(BrokenEgress):
    port = TakesAnyTenant
    caught_by = frozenset({"test_a_tenant_reaches_what_it_is_entitled_to"})


class KeepsEverything(GuardedEgress):
    async def fetch(self, auth: AuthContext, url: str, **more: Any) -> Fetched:
        return await super().fetch(auth, url, **{**more, "max_bytes": MAX_BODY_BYTES})


class TestKeepsEverything(BrokenEgress):
    port = KeepsEverything
    caught_by = frozenset({"test_a_body_is_cut_at_the_limit_and_says_so"})


class CallsFailuresDenials(GuardedEgress):
    async def fetch(self, auth: AuthContext, url: str, **more: Any) -> Fetched:
        try:
            return await super().fetch(auth, url, **more)
        except Unavailable as error:
            if error.code == "upstream_timeout":
                raise
            raise PermissionDenied(error.message, code="egress_denied") from error


class TestCallsFailuresDenials(BrokenEgress):
    port = CallsFailuresDenials
    caught_by = frozenset({"test_what_is_no_plain_answer_fails", "test_nobody_there_fails"})


class Waits(GuardedEgress):
    async def fetch(self, auth: AuthContext, url: str, **more: Any) -> Fetched:
        return await super().fetch(auth, url, **{**more, "timeout": MAX_TIMEOUT})


class TestWaits(BrokenEgress):
    port = Waits
    caught_by = frozenset({"test_a_host_that_says_nothing_is_left_in_time"})


class ChecksByCalling(GuardedEgress):
    async def check(self, auth: AuthContext, url: str) -> None:
        await self.fetch(auth, url, max_bytes=1, timeout=MAX_TIMEOUT)


class TestChecksByCalling(BrokenEgress):
    port = ChecksByCalling
    caught_by = frozenset({"test_a_check_lets_through_and_connects_to_nobody"})
