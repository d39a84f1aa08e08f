"""Where a tool may connect to: public addresses over HTTP, and what the operator named explicitly. Nothing else.

Three steps, each of which fails closed with `egress_denied`:

1. `parse` takes the URL apart once, by a grammar stricter than any client's. The request is built from the parts, so
   that no second parser can read another host out of the same text.
2. `Guard.admit` resolves the host once and requires *all* its addresses to be allowed: one bad address among good ones
   is how rebinding looks.
3. The caller connects to `Destination.addresses`, never to the name again. TLS is still verified against the name.

`ipaddress.is_global` is not the rule: it is true for NAT64, 6to4, IPv4-compatible and multicast addresses, and for the
metadata address of one cloud.
"""

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote

import anyio

from adapters.builtin_tools.tool import failed
from ports.errors import PermissionDenied

MAX_URL_CHARS: Final = 2_048
MAX_ADDRESSES: Final = 16

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve: TypeAlias = Callable[[str, int], Awaitable[tuple[str, ...]]]
"""Host name and port in, textual addresses out. Raises `OSError` when there are none."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ALLOWED_PORTS: Final = frozenset(_DEFAULT_PORTS.values())

_URL: Final = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([0-9]{1,5}))?([/?][^#]*)?(?:#.*)?", re.IGNORECASE
)
_FORBIDDEN_CHARS: Final = re.compile(r"[\x00-\x20\x7f\\]|\s")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Names that never mean a public host (RFC 6761, 6762, 7686, 8375, 9476, and what clouds and offices use).
_LOCAL_SUFFIXES: Final = frozenset(
    {"localhost", "localdomain", "local", "internal", "intranet", "lan", "corp", "home", "private", "invalid", "test",
     "onion", "alt", "arpa"}
)  # fmt: skip

# Public by the letter of the registry, and yet never a host a tool should talk to.
_DENIED: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host services
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments, Teredo among them
        "2002::/16",  # 6to4: carries an IPv4 address
        "3ffe::/16",  # the old 6bone
        "3fff::/20",  # documentation
    )
)
_IPV6_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})  # interface ids that carry an IPv4 address


def denied(reason: str) -> PermissionDenied:
    return PermissionDenied(f"the URL may not be fetched: {reason}", code="egress_denied")


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """A URL in parts. `host` is lower case: a name, or an address without brackets."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query, percent-encoded."""

    @property
    def authority(self) -> str:
        """What belongs into the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A URL whose addresses have all been checked. Connect to these and to no other."""

    url: Url
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRules:
    """What the operator adds to the rule. `private` entries are `host:port`, and lift every check for that pair."""

    private: frozenset[tuple[str, int]] = frozenset()
    deny: tuple[Network, ...] = ()


def parse(text: str) -> Url:
    """The parts of an absolute HTTP URL with an unambiguous host.

    Raises:
        PermissionDenied: `egress_denied`: anything that two readers might read differently.
    """
    if len(text) > MAX_URL_CHARS:
        raise denied(f"it has more than {MAX_URL_CHARS} characters")
    if _FORBIDDEN_CHARS.search(text):
        raise denied("it contains a space, a control character or a backslash")
    match = _URL.fullmatch(text)
    if match is None:
        raise denied("it must be http(s)://host[:port]/path, without user name, and with an ASCII host (IDN as xn--)")
    scheme, host, port, target = match[1].lower(), match[2].lower(), match[3], match[4] or "/"
    number = int(port) if port else _DEFAULT_PORTS[scheme]
    if not 0 < number < 65_536:  # noqa: PLR2004  # the ports there are
        raise denied("the port is not between 1 and 65535")
    return Url(
        scheme=scheme,
        host=_host(host),
        port=number,
        # What is percent-encoded stays so, the rest of Unicode is encoded: paths may have umlauts, hosts may not.
        target=quote(target if target.startswith("/") else "/" + target, safe="/?:@!$&'()*+,;=~%-._[]|"),
    )


def address_is_public(address: Address, *, deny: tuple[Network, ...] = ()) -> bool:
    """Whether `address` is a unicast address of the public internet, and in none of the networks of `deny`."""
    if any(address in network for network in (*_DENIED, *deny) if network.version == address.version):
        return False
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    carries_ipv4 = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP
    return address in _IPV6_UNICAST and address.scope_id is None and not carries_ipv4


async def resolve_by_system(host: str, port: int) -> tuple[str, ...]:
    """The addresses of `host`, as the system's resolver knows them, without duplicates."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Guard:
    """Decides about one URL at a time; keeps nothing."""

    def __init__(self, rules: EgressRules, resolve: Resolve = resolve_by_system) -> None:
        self._rules = rules
        self._resolve = resolve

    async def admit(self, text: str) -> Destination:
        """The addresses behind `text`, all of them allowed.

        Raises:
            PermissionDenied: `egress_denied`.
            Unavailable: `tool_failed`: the name does not resolve.
        """
        url = parse(text)
        named = (url.host, url.port) in self._rules.private
        if not named:
            _check_name(url)
        addresses = await self._addresses(url)
        for textual in addresses:
            # A scope is not part of an address of the internet, and a resolver that answers garbage is not trusted.
            address = _address(textual)
            if address is None:
                raise denied("the host resolves to something that is not an address")
            if not named and not address_is_public(address, deny=self._rules.deny):
                raise denied("the host is, or resolves to, an address that is not public")
        return Destination(url=url, addresses=addresses)

    async def _addresses(self, url: Url) -> tuple[str, ...]:
        if _address(url.host) is not None:
            return (url.host,)
        try:
            addresses = await self._resolve(url.host, url.port)
        except (OSError, UnicodeError) as error:
            raise failed("the URL's host name could not be resolved; check its spelling") from error
        if not addresses:
            raise failed("the URL's host name has no address; check its spelling")
        if len(addresses) > MAX_ADDRESSES:
            raise denied(f"the host has more than {MAX_ADDRESSES} addresses")
        return addresses


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _host(host: str) -> str:
    """`host` if it is a plain name or an address in its one usual form."""
    if host.startswith("["):
        inner = _address(host[1:-1])
        if not isinstance(inner, ipaddress.IPv6Address):
            raise denied("the host in brackets is not an IPv6 address")
        return str(inner)
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):  # noqa: PLR2004  # RFC 1035
        raise denied("the host is not a plain name; write it without a trailing dot")
    # Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses; we read dotted decimals only.
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]) and _address(host) is None:
        raise denied("the host is a number but not an address in its usual form")
    return host


def _check_name(url: Url) -> None:
    if url.port not in _ALLOWED_PORTS:
        raise denied("only the ports 80 and 443 are allowed")
    if _address(url.host) is None and ("." not in url.host or url.host.rpartition(".")[2] in _LOCAL_SUFFIXES):
        raise denied("the host is not a public name")
