"""An HTTP URL in parts, by a grammar stricter than any client's. Pure.

The request is built from the parts, so that no second parser can read another host out of the same text.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from adapters.egress.addresses import address_of
from ports import hosts
from ports.egress import Rule
from ports.errors import PermissionDenied

MAX_URL_CHARS: Final = 2_048

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
WEB_PORTS: Final = frozenset(_DEFAULT_PORTS.values())

_URL: Final = re.compile(
    r"([hH][tT][tT][pP][sS]?)://(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9.-]+)(?::([0-9]{1,5}))?([/?][^#]*)?(?:#.*)?"
)
"""Both cases by hand: in any case, `\u017f` is an s and the sign for kelvin a k."""
_FORBIDDEN_CHARS: Final = re.compile(r"[\x00-\x20\x7f\\]|\s")


def denied(rule: Rule, reason: str) -> PermissionDenied:
    return PermissionDenied(f"the URL may not be fetched: {reason}", code="egress_denied", details={"rule": rule})


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


def parse(text: str) -> Url:
    """The parts of an absolute HTTP URL with an unambiguous host.

    Raises:
        PermissionDenied: `egress_denied`: anything that two readers might read differently.
    """
    if len(text) > MAX_URL_CHARS:
        raise denied("form", f"it has more than {MAX_URL_CHARS} characters")
    if _FORBIDDEN_CHARS.search(text):
        raise denied("form", "it contains a space, a control character or a backslash")
    match = _URL.fullmatch(text)
    if match is None:
        raise denied(
            "form", "it must be http(s)://host[:port]/path, without user name, and with an ASCII host (IDN as xn--)"
        )
    scheme, host, port, target = match[1].lower(), match[2].lower(), match[3], match[4] or "/"
    number = int(port) if port else _DEFAULT_PORTS[scheme]
    if not 0 < number < 65_536:  # noqa: PLR2004  # the ports there are
        raise denied("form", "the port is not between 1 and 65535")
    return Url(
        scheme=scheme,
        host=_host(host),
        port=number,
        # What is percent-encoded stays so, the rest of Unicode is encoded: paths may have umlauts, hosts may not.
        target=quote(target if target.startswith("/") else "/" + target, safe="/?:@!$&'()*+,;=~%-._[]|"),
    )


def _host(host: str) -> str:
    """`host` if it is a plain name or an address in its one usual form."""
    if host.startswith("["):
        inner = address_of(host[1:-1])
        if not isinstance(inner, ipaddress.IPv6Address):
            raise denied("form", "the host in brackets is not an IPv6 address")
        return str(inner)
    if not hosts.is_plain(host):
        raise denied("form", "the host is not a plain name; write it without a trailing dot")
    # Of all that resolvers read as addresses, we read dotted decimals only.
    if hosts.is_number(host) and address_of(host) is None:
        raise denied("form", "the host is a number but not an address in its usual form")
    return host


def check_name(url: Url, ports: frozenset[int]) -> None:
    """Raise `PermissionDenied` for a port that is not among `ports`, and for a name that never means a public host."""
    if url.port not in ports:
        raise denied("port", f"only the ports {', '.join(map(str, sorted(ports)))} are allowed")
    if address_of(url.host) is None and hosts.is_local(url.host):
        raise denied("name", "the host is not a public name")
