"""R15: whatever the URL, and however it is come by, a canary on loopback hears nothing.

Each form is registered (`check`), called (`fetch`), and named by an answer that redirects to it. The canary's own port is
among those allowed, so that it is never the port alone that saves us. The other half proves the proof: with any one
control taken out, the canary does hear.
"""

import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute, SocketStream

from adapters import egress as family
from adapters.egress import guard, url
from adapters.egress.addresses import address_is_public, address_of
from adapters.egress.guard import Destination, Guard
from adapters.egress.names import resolve_by_system
from conformance.people import ACME
from ports.egress import EgressPort
from ports.errors import AgentOSError, PermissionDenied
from tests.support.egress import guarded
from tests.support.http_origin import answer, serving
from tests.support.unsafe_urls import UNSAFE_URLS

PATIENCE: Final = timedelta(seconds=30)
"""Nobody here is silent: whoever takes long waits for a processor."""
UNREACHED: Final = "127.9.9.9"
"""Stands for the public address that a rebinding name has at first: somewhere that nobody listens, and that the guard of
these tests takes for public."""

ANSWERS: Final = {
    "mixed.example.com": (UNREACHED, "127.0.0.1"),
    "mapped.example.com": (UNREACHED, "::ffff:127.0.0.1"),
    "scoped.example.com": ("fe80::1%1",),
    "garbage.example.com": ("not an address",),
}

pytestmark = pytest.mark.anyio


class Canary:
    """Counts who connects to it."""

    def __init__(self) -> None:
        self.hits = 0
        self.port = 0

    async def _serve(self, stream: SocketStream) -> None:
        self.hits += 1
        await stream.aclose()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            self.port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # anyio's, not Django's
            group.start_soon(listener.serve, self._serve)
            yield
            group.cancel_scope.cancel()


class FlippingResolver:
    """In the place of the system's: a name is public when it is asked for first, and loopback ever after."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}

    def __call__(self, told: str | bytes, port: object, *_args: object, **_kwargs: object) -> list[tuple[Any, ...]]:
        host = told.decode() if isinstance(told, bytes) else told
        self.asked[host] = self.asked.get(host, 0) + 1
        address = UNREACHED if self.asked[host] == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(str(port or 0))))]


@pytest.fixture(autouse=True)
def unreached_counts_as_public(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = address_is_public
    monkeypatch.setattr(
        guard, "address_is_public", lambda address, **more: str(address) == UNREACHED or usual(address, **more)
    )


async def resolve_to_loopback(host: str, _port: int) -> tuple[str, ...]:
    return ANSWERS.get(host, ("127.0.0.1",))


async def attempt(call: Awaitable[object]) -> AgentOSError | None:
    try:
        await call
    except AgentOSError as error:
        return error
    return None


async def register(port: EgressPort, text: str) -> AgentOSError | None:
    return await attempt(port.check(ACME, text))


async def call(port: EgressPort, text: str) -> AgentOSError | None:
    return await attempt(port.fetch(ACME, text, max_bytes=1_000, timeout=PATIENCE))


async def follow(canary: Canary, text: str) -> AgentOSError | None:
    """An allowed host answers with a redirect to `text`, where that can be the value of a header at all."""
    if not text or any(ord(char) < 32 or ord(char) > 126 for char in text):
        return None
    moved = answer(b"", status="302 Found", location=text)
    async with (
        serving({"/": moved}) as origin,
        guarded(private={("shop.example", origin.port)}, ports=(80, 443, canary.port)) as port,
    ):
        return await call(port, f"http://shop.example:{origin.port}/")


async def rebind(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a name was resolved that turns to loopback after its first answer."""
    resolver = FlippingResolver()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolver)
        async with guarded(resolve_by_system, ports=(80, 443, canary.port)) as port:
            await call(port, f"http://rebinding.example.com:{canary.port}/")
    return resolver.asked["rebinding.example.com"]


async def test_no_unsafe_url_reaches_the_canary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    canary, denied = Canary(), {"register": 0, "call": 0}
    with anyio.fail_after(120):
        async with canary.listening():
            for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(variable, f"http://127.0.0.1:{canary.port}")
            forms = [form.replace("{port}", str(canary.port)) for form in UNSAFE_URLS]
            async with guarded(resolve_to_loopback, ports=(80, 443, canary.port)) as port:
                for form in forms:
                    for way, act in (("register", register), ("call", call)):
                        refusal = await act(port, form)
                        assert isinstance(refusal, PermissionDenied), (way, form)
                        assert refusal.code == "egress_denied", (way, form)
                        denied[way] += 1
            for form in forms:
                assert await follow(canary, form) is None
            asked = await rebind(canary, monkeypatch)
            record = {"invariant": "R15", "forms": len(forms), "denied": denied, "redirects_followed": 0,
                      "rebinding_lookups": asked, "canary_hits": canary.hits}  # fmt: skip

    with capsys.disabled():
        print(json.dumps(record))  # noqa: T201  # the record is what the proof prints
    assert len(set(UNSAFE_URLS)) == len(UNSAFE_URLS) >= 60
    assert (record["canary_hits"], asked) == (0, 1)


# The controls, each taken out. Every one of these must be heard by the canary.

Control = Callable[[pytest.MonkeyPatch], None]


def no_check_of_addresses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guard, "address_is_public", lambda *_args, **_more: True)


def the_librarys_word_for_public(patch: pytest.MonkeyPatch) -> None:
    """`is_global`, and an address within IPv6 is what it carries: how a kernel without NAT64 would not, a network may."""
    patch.setattr(guard, "address_is_public", lambda address, **_more: bool(address.is_global))
    arrived = guard.Guard.admit

    async def admit(self: Guard, parts: url.Url) -> Destination:
        found = await arrived(self, parts)
        return Destination(url=found.url, addresses=tuple(_carried(one) for one in found.addresses))

    patch.setattr(guard.Guard, "admit", admit)


def _carried(address: str) -> str:
    return "127.0.0.1" if address in {"64:ff9b::7f00:1", "2002:7f00:1::"} else address


def the_first_address_speaks_for_all(patch: pytest.MonkeyPatch) -> None:
    usual = guard.Guard._addresses

    async def admit(self: Guard, parts: url.Url) -> Destination:
        found = await usual(self, parts)
        if found[0] != UNREACHED:
            raise url.denied("address", "not public")
        return Destination(url=parts, addresses=found)

    patch.setattr(guard.Guard, "admit", admit)


def connects_to_the_name(patch: pytest.MonkeyPatch) -> None:
    usual = guard.Guard.admit

    async def admit(self: Guard, parts: url.Url) -> Destination:
        await usual(self, parts)
        return Destination(url=parts, addresses=(parts.host,))

    patch.setattr(guard.Guard, "admit", admit)


def no_check_of_forms(patch: pytest.MonkeyPatch) -> None:
    """The host is whatever a lenient parser makes of it, and a number is left to the resolver."""

    def parse(text: str) -> url.Url:
        found = httpx.URL(text)
        port = found.port or {"http": 80, "https": 443}[found.scheme]
        return url.Url(scheme=found.scheme, host=found.host.rstrip("."), port=port, target="/")

    patch.setattr(family, "parse", parse)
    patch.setattr(guard, "check_name", lambda *_args: None)
    patch.setattr(guard, "address_is_public", lambda address, **_more: str(address) == UNREACHED)

    async def _addresses(_self: Guard, parts: url.Url) -> tuple[str, ...]:
        """What is no address is a name, and is resolved where it is connected to."""
        return (parts.host,)

    patch.setattr(guard.Guard, "_addresses", _addresses)
    usual = address_of
    patch.setattr(guard, "address_of", lambda text: usual(UNREACHED) if usual(text) is None else usual(text))


def follows_redirects(patch: pytest.MonkeyPatch) -> None:
    _client(patch, follow_redirects=True)


def heeds_the_proxy(patch: pytest.MonkeyPatch) -> None:
    _client(patch, trust_env=True)


def _client(patch: pytest.MonkeyPatch, *, follow_redirects: bool = False, trust_env: bool = False) -> None:
    """A client in the place of the transport, as one would write it first."""

    @asynccontextmanager
    async def open_transport(_ca_file: str) -> AsyncIterator[httpx.AsyncBaseTransport]:
        class Client(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                async with httpx.AsyncClient(
                    follow_redirects=follow_redirects, trust_env=trust_env, verify=ssl.create_default_context()
                ) as client:
                    return await client.get(str(request.url))

        yield Client()

    patch.setattr(family, "open_transport", open_transport)


@pytest.mark.parametrize(
    "removed",
    [no_check_of_addresses, the_librarys_word_for_public, the_first_address_speaks_for_all, connects_to_the_name,
     no_check_of_forms, follows_redirects, heeds_the_proxy],
)  # fmt: skip
async def test_with_a_control_taken_out_the_canary_hears(monkeypatch: pytest.MonkeyPatch, removed: Control) -> None:
    canary = Canary()
    with anyio.fail_after(120):
        async with canary.listening():
            if removed is heeds_the_proxy:
                monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{canary.port}")
            removed(monkeypatch)
            await _every_way(canary, monkeypatch)

    assert canary.hits > 0


async def _every_way(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"http://127.0.0.1:{canary.port}/"
    forms = [
        here, f"http://mixed.example.com:{canary.port}/", f"http://0x7F.1:{canary.port}/",
        f"http://[64:ff9b::7f00:1]:{canary.port}/", f"http://user@127.1:{canary.port}/",
    ]  # fmt: skip
    async with guarded(resolve_to_loopback, ports=(80, 443, canary.port)) as port:
        for form in forms:
            await call(port, form)
    await follow(canary, here)
    await rebind(canary, monkeypatch)
    async with guarded(private={("shop.example", 80)}) as port:
        await call(port, "http://shop.example/")


async def test_the_canary_does_hear_who_comes() -> None:
    canary = Canary()
    with anyio.fail_after(30):
        async with canary.listening(), guarded(private={("127.0.0.1", canary.port)}) as port:
            await call(port, f"http://127.0.0.1:{canary.port}/")

    assert canary.hits == 1
