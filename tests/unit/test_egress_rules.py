"""Which URLs and addresses are let through. What reaches the network: `test_egress_canary`."""

import ipaddress
from typing import Final

import pytest
from msgspec import convert

from adapters.egress import EgressConfig, egress_rules
from adapters.egress.addresses import address_is_public
from adapters.egress.guard import Destination, EgressRules, Guard
from adapters.egress.names import Resolve
from adapters.egress.url import Url, parse
from ports.egress import host_is_allowed
from ports.errors import InvalidArgument, PermissionDenied, Unavailable
from tests.support.egress import resolve_to

PUBLIC: Final = "93.184.216.34"


async def admitted(rules: EgressRules, resolve: Resolve, text: str) -> Destination:
    return await Guard(rules, resolve).admit(parse(text))


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


@pytest.mark.anyio
class TestGuard:
    async def test_a_public_name_is_admitted_with_the_addresses_that_were_checked(self) -> None:
        both = resolve_to(PUBLIC, "2606:4700::1111")

        destination = await admitted(EgressRules(), both, "https://example.com/page")

        assert destination.url.host == "example.com"
        assert destination.addresses == (PUBLIC, "2606:4700::1111")

    async def test_a_name_is_resolved_once(self) -> None:
        asked: list[str] = []

        async def resolve(host: str, _port: int) -> tuple[str, ...]:
            asked.append(host)
            return (PUBLIC,)

        await admitted(EgressRules(), resolve, "https://example.com/")

        assert asked == ["example.com"]

    @pytest.mark.parametrize(
        "form",
        ["http://example.com:22/", "https://example.com:8443/", "http://2130706433/", "http://127.1/", "http://0x7f.1/",
         "http://0x7f.0.0.0x1/", "http://0177.0.0.1/", "http://1.2.3.256/", "http://example.0x1/", "http://printer.local/",
         "http://metadata.google.internal/", "http://intranet/", "http://example.com./", "http://user@example.com/",
         "http://example.com/\r\nHost: x", "http://example.com/a b", "http://example.com/\x7f", "http://example.com\\/",
         "http\u017f://example.com/", "https://\u212aube.example.com/"],
    )  # fmt: skip
    async def test_a_form_that_is_odd_in_itself_is_refused_whatever_it_resolves_to(self, form: str) -> None:
        with pytest.raises(PermissionDenied) as refusal:
            await admitted(EgressRules(), resolve_to(PUBLIC), form)

        assert refusal.value.code == "egress_denied"

    async def test_a_name_without_addresses_fails_and_is_not_called_unsafe(self) -> None:
        async def resolve(_host: str, _port: int) -> tuple[str, ...]:
            raise OSError("no such name")

        with pytest.raises(Unavailable) as failure:
            await admitted(EgressRules(), resolve, "https://no-such-name.example.com/")

        assert (failure.value.code, failure.value.retryable) == ("upstream_error", False)

    async def test_an_endless_list_of_addresses_is_refused(self) -> None:
        with pytest.raises(PermissionDenied):
            await admitted(EgressRules(), resolve_to(*[PUBLIC] * 17), "https://example.com/")

    async def test_only_the_very_host_and_port_that_the_operator_named_are_lifted(self) -> None:
        rules, resolve = EgressRules(private=frozenset({("intranet", 8080)})), resolve_to("10.0.0.7")

        assert (await admitted(rules, resolve, "http://intranet:8080/x")).addresses == ("10.0.0.7",)
        for other in ("http://intranet/", "http://intranet:8081/", "http://other:8080/", "http://10.0.0.7:8080/"):
            with pytest.raises(PermissionDenied):
                await admitted(rules, resolve, other)


def test_exceptions_to_the_egress_rule_are_read_from_the_configuration() -> None:
    config = convert(
        {"allow_private": ["Intranet:8080", "[::1]:80"], "deny_networks": ["203.0.113.0/24"]}, EgressConfig
    )

    rules = egress_rules(config)

    assert rules.private == {("intranet", 8080), ("::1", 80)}
    assert str(rules.deny[0]) == "203.0.113.0/24"


@pytest.mark.parametrize(
    "config",
    [EgressConfig(allow_private=("intranet",)), EgressConfig(allow_private=(":80",)),
     EgressConfig(allow_private=("a:b",)), EgressConfig(deny_networks=("203.0.113.1/24",))],
)  # fmt: skip
def test_an_exception_that_can_not_be_read_is_refused(config: EgressConfig) -> None:
    with pytest.raises(InvalidArgument):
        egress_rules(config)


@pytest.mark.parametrize(
    ("host", "patterns", "allowed"),
    [
        ("example.com", ("*",), True), ("93.184.216.34", ("*",), True), ("example.com", (), False),
        ("example.com", ("example.com",), True), ("www.example.com", ("example.com",), False),
        ("www.example.com", ("*.example.com",), True), ("a.b.example.com", ("*.example.com",), True),
        ("example.com", ("*.example.com",), False), ("evilexample.com", ("*.example.com",), False),
        ("example.com.evil.com", ("example.com", "*.example.com"), False), ("1.0.0.127", ("*.0.127",), False),
        ("93.184.216.34", ("93.184.216.34",), True),
    ],
)  # fmt: skip
def test_a_tenants_list_names_hosts_and_what_is_below_a_domain(
    host: str, patterns: tuple[str, ...], allowed: bool
) -> None:
    assert host_is_allowed(host, patterns) is allowed
