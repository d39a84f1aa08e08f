"""Which addresses are of the public internet. Pure.

`ipaddress.is_global` is not the rule: it is true for NAT64, 6to4, IPv4-compatible and multicast addresses, and for the
metadata address of one cloud.
"""

import ipaddress
from typing import Final, TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

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


def address_of(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
