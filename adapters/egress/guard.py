"""Where a call for a tenant may go: public addresses over HTTP, and what the operator named explicitly. Nothing else.

Each step fails closed with `egress_denied`:

1. `url.parse` takes the URL apart once.
2. The host is one that the caller's tenant is entitled to.
3. The host is resolved once, and *all* its addresses must be allowed: one bad address among good ones is how rebinding
   looks.
4. The caller connects to `Destination.addresses`, never to the name again. TLS is still verified against the name.
"""

from dataclasses import dataclass
from typing import Final

from adapters.egress.addresses import Network, address_is_public, address_of
from adapters.egress.names import Resolve, resolve_by_system
from adapters.egress.url import WEB_PORTS, Url, check_name, denied
from ports.context import EGRESS_NODE, AuthContext
from ports.egress import host_is_allowed
from ports.errors import NotFound, Unavailable
from ports.tenant import TenantDirectory

MAX_ADDRESSES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A URL whose addresses have all been checked. Connect to these and to no other."""

    url: Url
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRules:
    """What the operator says. `private` entries are `host:port`, and lift every check of the address for that pair."""

    private: frozenset[tuple[str, int]] = frozenset()
    deny: tuple[Network, ...] = ()
    ports: frozenset[int] = WEB_PORTS


class Guard:
    """Decides about one URL at a time; keeps nothing."""

    def __init__(self, rules: EgressRules, resolve: Resolve = resolve_by_system) -> None:
        self._rules = rules
        self._resolve = resolve

    async def admit(self, url: Url) -> Destination:
        """The addresses behind `url`, all of them allowed.

        Raises:
            PermissionDenied: `egress_denied`.
            Unavailable: `upstream_error`: the name does not resolve.
        """
        named = (url.host, url.port) in self._rules.private
        if not named:
            check_name(url, self._rules.ports)
        addresses = await self._addresses(url)
        for textual in addresses:
            # A scope is not part of an address of the internet, and a resolver that answers garbage is not trusted.
            address = address_of(textual)
            if address is None:
                raise denied("address", "the host resolves to something that is not an address")
            if not named and not address_is_public(address, deny=self._rules.deny):
                raise denied("address", "the host is, or resolves to, an address that is not public")
        return Destination(url=url, addresses=addresses)

    async def _addresses(self, url: Url) -> tuple[str, ...]:
        if address_of(url.host) is not None:
            return (url.host,)
        try:
            addresses = await self._resolve(url.host, url.port)
        except (OSError, UnicodeError) as error:
            raise unresolved("could not be resolved") from error
        if not addresses:
            raise unresolved("has no address")
        if len(addresses) > MAX_ADDRESSES:
            raise denied("address", f"the host has more than {MAX_ADDRESSES} addresses")
        return addresses


def unresolved(what: str) -> Unavailable:
    text = f"the URL's host name {what}; check its spelling"
    return Unavailable(text, code="upstream_error", retryable=False, details={"reason": "resolve"})


async def check_tenant(tenants: TenantDirectory, auth: AuthContext, url: Url) -> None:
    """Raise `PermissionDenied` unless the caller's tenant is entitled to this host. Asked anew for every call."""
    if EGRESS_NODE in auth.scopes:
        return
    try:
        entitled = (await tenants.get(auth, auth.tenant)).entitlements.egress_hosts
    except NotFound:
        entitled = ()
    if not host_is_allowed(url.host, entitled):
        raise denied("tenant", "this tenant is not entitled to that host")
