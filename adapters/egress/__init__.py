"""EgressPort: a guard that decides where a call may go, and an exchange that goes exactly there.

`url.py` and `addresses.py` are the rules, pure. Nothing in this family opens a connection to a name.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from typing import Annotated, Final

import httpx
from msgspec import Meta, Struct

from adapters.egress.addresses import Network
from adapters.egress.exchange import checked_headers, exchange, open_transport
from adapters.egress.guard import Destination, EgressRules, Guard, check_tenant
from adapters.egress.names import Lookups, Resolve, resolve_by_system
from adapters.egress.shares import Shares
from adapters.egress.url import parse
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.egress import MAX_BODY_BYTES, MAX_TIMEOUT, EgressPort, Fetched, Method
from ports.errors import InvalidArgument, Unavailable
from ports.tenant import TenantDirectory

MAX_CALLS_OF_A_TENANT: Final = 20
"""At a time, in a process; its others wait, within their own time."""

Port = Annotated[int, Meta(ge=1, le=65_535)]


class EgressConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allow_private: tuple[str, ...] = ()
    """`host:port` pairs that may be reached although they are not public, such as an intranet's API: by every tenant that
    is entitled to the host."""

    deny_networks: tuple[str, ...] = ()
    """Public networks that may not be reached: the operator's own, and its NAT64 prefix."""

    ports: Annotated[tuple[Port, ...], Meta(max_length=16)] = (80, 443)
    """Of public hosts."""

    ca_file: str = ""
    """Certificate authorities instead of the public ones."""


class EgressCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class GuardedEgress:
    """Satisfies `EgressPort`."""

    def __init__(self, guard: Guard, tenants: TenantDirectory, transport: httpx.AsyncBaseTransport) -> None:
        self._guard = guard
        self._tenants = tenants
        self._transport = transport
        self._lookups = Lookups()
        self._calls = Shares(MAX_CALLS_OF_A_TENANT)

    async def fetch(
        self,
        auth: AuthContext,
        url: str,
        *,
        max_bytes: int,
        timeout: timedelta,
        method: Method = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Fetched:
        if (
            not 0 <= max_bytes <= MAX_BODY_BYTES
            or not timedelta(0) < timeout <= MAX_TIMEOUT
            or len(body) > MAX_BODY_BYTES
        ):
            raise InvalidArgument(
                f"a call may send and keep at most {MAX_BODY_BYTES} bytes, and take {MAX_TIMEOUT.total_seconds():g} s"
            )
        sent = checked_headers(headers or {})
        bound = asyncio.timeout(timeout.total_seconds())
        late = f"{MAX_CALLS_OF_A_TENANT} calls of this tenant were under way"
        try:
            async with bound, self._calls.of(auth.tenant):
                late = "the server did not answer whole"
                destination = await self._admitted(auth, url)
                return await exchange(
                    self._transport, destination, method=method, headers=sent, body=body, max_bytes=max_bytes
                )
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise Unavailable(f"{late} for {timeout.total_seconds():g} s", code="upstream_timeout") from error

    async def check(self, auth: AuthContext, url: str) -> None:
        bound = asyncio.timeout(MAX_TIMEOUT.total_seconds())
        try:
            async with bound:
                await self._admitted(auth, url)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise Unavailable("the URL's host could not be resolved in time", code="upstream_timeout") from error

    async def _admitted(self, auth: AuthContext, text: str) -> Destination:
        url = parse(text)
        # Before the name is resolved: a question to somebody's name server is a message too.
        await check_tenant(self._tenants, auth, url)
        return await self._lookups.of(auth.tenant, lambda: self._guard.admit(url))

    def close(self) -> None:
        """Leave what nobody waits for any more."""
        self._lookups.close()


def egress_rules(config: EgressConfig) -> EgressRules:
    """What is configured, checked. Raises `InvalidArgument` naming the entry that can't be read."""
    return EgressRules(
        private=frozenset(_pair(text) for text in config.allow_private),
        deny=tuple(_network(text) for text in config.deny_networks),
        ports=frozenset(config.ports),
    )


def _pair(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidArgument(f"allow_private: {text!r} is not host:port, for example 'intranet.example:8080'")
    return host.strip("[]").lower(), int(port)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"deny_networks: {text!r} is not a network, for example '203.0.113.0/24'") from error


@asynccontextmanager
async def open_guarded(
    rules: EgressRules, tenants: TenantDirectory, *, resolve: Resolve = resolve_by_system, ca_file: str = ""
) -> AsyncIterator[EgressPort]:
    async with open_transport(ca_file) as transport:
        with closing(GuardedEgress(Guard(rules, resolve), tenants, transport)) as port:
            yield port


@asynccontextmanager
async def open_egress(config: EgressConfig, given: Given) -> AsyncIterator[EgressPort]:
    async with open_guarded(egress_rules(config), given.ports["tenant"], ca_file=config.ca_file) as egress:
        yield egress


SPEC: Final = AdapterSpec(
    config=EgressConfig, capabilities=lambda _config: EgressCapabilities(), open=open_egress, needs=("tenant",)
)
