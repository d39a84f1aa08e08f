"""Which URLs and addresses are let through. The last test counts what a canary on loopback hears."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from adapters.builtin_tools.egress import EgressRules, Guard, Resolve, Url, address_is_public, parse
from adapters.builtin_tools.http_get import open_http_get
from conformance.people import ACME
from ports.errors import AgentOSError, PermissionDenied, Unavailable
from ports.tool import ToolCall

PUBLIC: Final = "93.184.216.34"

# `{port}` is the canary's. Those that are names resolve to loopback in the test.
UNSAFE_URLS: Final = (
    # loopback and its spellings
    "http://127.0.0.1:{port}/", "http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://127.255.255.254/",
    "http://localhost:{port}/", "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://foo.localhost/",
    "http://[::1]:{port}/", "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://0.0.0.0:{port}/", "http://0.0.0.0/",
    "http://0/", "http://[::]/",
    # numbers that resolvers read as addresses
    "http://2130706433/", "http://2130706433:{port}/", "http://0x7f000001/", "http://0x7f.1/", "http://0x7f.0x0.0x0.0x1/",
    "http://017700000001/", "http://0177.0.0.1/", "http://127.0.0.1.:{port}/", "http://0x7F.1:{port}/", "http://1/",
    "http://00000177.0.0.1/", "http://127.0.0.01/", "http://4294967295/", "http://256.256.256.256/",
    # IPv4 inside IPv6
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/", "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::7f00:1]/", "http://[2002:7f00:1::]/", "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[2606:4700::5efe:7f00:1]/", "http://[::ffff:0:127.0.0.1]/",
    # private, link-local, metadata, multicast, reserved
    "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/", "http://100.100.100.200/", "http://100.64.0.1/", "http://224.0.0.1/", "http://240.0.0.1/",
    "http://255.255.255.255/", "http://198.18.0.1/", "http://192.0.0.1/", "http://192.0.2.1/", "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[ff02::1]/", "http://[2001:db8::1]/",
    "http://[100::1]/", "http://192.88.99.1/",
    # user names, encodings, look-alikes
    "http://example.com@127.0.0.1/", "http://example.com:80@127.0.0.1:{port}/", "http://127.0.0.1#@example.com/",
    "http://example.com\\@127.0.0.1/", "http://127.0.0.1\\.example.com/", "http://%31%32%37.0.0.1/", "http://127%2e0.0.1/",
    "http://①②⑦.⓪.⓪.①/", "http://１２７.０.０.１/", "http://127。0。0。1/", "http://ⓛocalhost/",
    "http://exämple.com/", "http://ex\u00adample.com/", "http://exa\u200bmple.com/", "http://example.com%00.evil.com/",
    # forms that readers disagree about
    "http:///127.0.0.1/", "http:/127.0.0.1/", "http:127.0.0.1", "//127.0.0.1/", "http://", "http://:{port}/", "http://.com/",
    "http://a..b.com/", "http://example.com:/", "http://example.com:0/", "http://example.com:65536/",
    "http://example.com:-80/", "http://example.com:８０/", "http://example.com:80:80/", "http:// 127.0.0.1/",
    " http://example.com/", "http://example.com/\r\nHost: 127.0.0.1", "http://example.com/\tx", "http://[::1/", "http://::1/",
    "http://[127.0.0.1]/", "http://[v1.x]/", "http://-example.com/", "http://example-.com/", "http://exa_mple.com/",
    # other schemes
    "file:///etc/passwd", "ftp://example.com/", "gopher://127.0.0.1:{port}/", "javascript:alert(1)", "data:text/plain,x",
    "unix:///var/run/x.sock", "https+unix://x/", "jar:http://127.0.0.1!/", "HTTP//127.0.0.1/", "", "x",
    # ports and names that are not the public web
    "http://example.com:22/", "http://example.com:8080/", "https://example.com:{port}/", "http://intranet/",
    "http://metadata.google.internal/", "http://printer.local/", "http://db.corp/", "http://x.test/", "http://x.home.arpa/",
    "http://x.onion/", "http://x.invalid/",
    # public names that resolve to loopback, wholly or in part (see the resolver)
    "http://rebinding.example.com/", "https://rebinding.example.com/", "http://mixed.example.com/", "http://mapped.example.com/",
    "http://scoped.example.com/", "http://garbage.example.com/",
    "http://" + "a" * 3_000 + ".com/", "http://" + "a." * 130 + "com/",
)  # fmt: skip

ANSWERS: Final = {
    "mixed.example.com": (PUBLIC, "127.0.0.1"),
    "mapped.example.com": (PUBLIC, "::ffff:127.0.0.1"),
    "scoped.example.com": ("fe80::1%1",),
    "garbage.example.com": ("not an address",),
}


async def resolve_to_loopback(host: str, _port: int) -> tuple[str, ...]:
    return ANSWERS.get(host, ("127.0.0.1",))


def resolve_to(*addresses: str) -> Resolve:
    async def resolve(_host: str, _port: int) -> tuple[str, ...]:
        return addresses

    return resolve


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::200e"],
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert address_is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["64:ff9b::5db8:d822", "4000::1", "::ffff:93.184.216.34", "fe80::1%eth0", "5f00::1"]
)
def test_an_address_outside_global_unicast_is_not_public_though_the_registry_may_say_so(address: str) -> None:
    assert not address_is_public(ipaddress.ip_address(address))


def test_the_operator_can_deny_further_networks() -> None:
    address = ipaddress.ip_address("93.184.216.34")

    assert not address_is_public(
        address, deny=(ipaddress.ip_network("93.184.216.0/24"), ipaddress.ip_network("2a00::/16"))
    )


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("HTTP://Example.COM", Url(scheme="http", host="example.com", port=80, target="/")),
        ("https://example.com/a?b=c#d", Url(scheme="https", host="example.com", port=443, target="/a?b=c")),
        ("https://example.com?q=1", Url(scheme="https", host="example.com", port=443, target="/?q=1")),
        ("http://example.com:443/ä%20b", Url(scheme="http", host="example.com", port=443, target="/%C3%A4%20b")),
        ("http://xn--bcher-kva.example/", Url(scheme="http", host="xn--bcher-kva.example", port=80, target="/")),
        ("http://[2606:4700:0::1111]/", Url(scheme="http", host="2606:4700::1111", port=80, target="/")),
    ],
)
def test_a_plain_url_comes_apart_as_it_reads(text: str, url: Url) -> None:
    assert parse(text) == url


def test_the_host_header_has_the_port_only_when_it_is_not_the_schemes_own() -> None:
    assert parse("http://example.com:80/").authority == "example.com"
    assert parse("http://example.com:443/").authority == "example.com:443"
    assert parse("http://[2606:4700::1]:443/").authority == "[2606:4700::1]:443"


def test_there_are_at_least_sixty_unsafe_forms() -> None:
    assert len(set(UNSAFE_URLS)) == len(UNSAFE_URLS) >= 60


@pytest.mark.anyio
class TestGuard:
    async def test_a_public_name_is_admitted_with_the_addresses_that_were_checked(self) -> None:
        guard = Guard(EgressRules(), resolve_to(PUBLIC, "2606:4700::1111"))

        destination = await guard.admit("https://example.com/page")

        assert destination.url.host == "example.com"
        assert destination.addresses == (PUBLIC, "2606:4700::1111")

    async def test_a_name_is_resolved_once(self) -> None:
        asked: list[str] = []

        async def resolve(host: str, _port: int) -> tuple[str, ...]:
            asked.append(host)
            return (PUBLIC,)

        await Guard(EgressRules(), resolve).admit("https://example.com/")

        assert asked == ["example.com"]

    @pytest.mark.parametrize(
        "form",
        ["http://example.com:22/", "https://example.com:8443/", "http://2130706433/", "http://127.1/", "http://0x7f.1/",
         "http://0x7f.0.0.0x1/", "http://0177.0.0.1/", "http://1.2.3.256/", "http://example.0x1/", "http://printer.local/",
         "http://metadata.google.internal/", "http://intranet/", "http://example.com./", "http://user@example.com/",
         "http://example.com/\r\nHost: x", "http://example.com/a b", "http://example.com/\x7f", "http://example.com\\/"],
    )  # fmt: skip
    async def test_a_form_that_is_odd_in_itself_is_refused_whatever_it_resolves_to(self, form: str) -> None:
        with pytest.raises(PermissionDenied) as refusal:
            await Guard(EgressRules(), resolve_to(PUBLIC)).admit(form)

        assert refusal.value.code == "egress_denied"

    async def test_a_name_without_addresses_fails_and_is_not_called_unsafe(self) -> None:
        async def resolve(_host: str, _port: int) -> tuple[str, ...]:
            raise OSError("no such name")

        with pytest.raises(Unavailable) as failure:
            await Guard(EgressRules(), resolve).admit("https://no-such-name.example.com/")

        assert failure.value.code == "tool_failed"

    async def test_an_endless_list_of_addresses_is_refused(self) -> None:
        with pytest.raises(PermissionDenied):
            await Guard(EgressRules(), resolve_to(*[PUBLIC] * 17)).admit("https://example.com/")

    async def test_only_the_very_host_and_port_that_the_operator_named_are_lifted(self) -> None:
        guard = Guard(EgressRules(private=frozenset({("intranet", 8080)})), resolve_to("10.0.0.7"))

        assert (await guard.admit("http://intranet:8080/x")).addresses == ("10.0.0.7",)
        for other in ("http://intranet/", "http://intranet:8081/", "http://other:8080/", "http://10.0.0.7:8080/"):
            with pytest.raises(PermissionDenied):
                await guard.admit(other)


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


@pytest.mark.anyio
async def test_the_canary_does_hear_who_comes() -> None:
    canary = Canary()
    rules = EgressRules(private=frozenset({("127.0.0.1", port) for port in range(65_536)}))
    with anyio.fail_after(30):
        async with canary.listening(), open_http_get(Guard(rules, resolve_to_loopback)) as http_get:
            url = f"http://127.0.0.1:{canary.port}/"
            with pytest.raises(Unavailable):
                await http_get.act(ACME, {"url": url}, _call(url))

    assert canary.hits == 1


@pytest.mark.anyio
async def test_no_unsafe_url_reaches_the_canary() -> None:
    canary = Canary()
    with anyio.fail_after(60):
        async with canary.listening(), open_http_get(Guard(EgressRules(), resolve_to_loopback)) as http_get:
            for form in UNSAFE_URLS:
                url = form.replace("{port}", str(canary.port))
                with pytest.raises(AgentOSError) as refusal:
                    pytest.fail(f"fetched {await http_get.act(ACME, {'url': url}, _call(url))}")
                assert refusal.value.code == "egress_denied", form

            assert canary.hits == 0


def _call(url: str) -> ToolCall:
    return ToolCall(name="http_get", arguments={"url": url}, key="run_0:1")
