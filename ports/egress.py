"""EgressPort: the one way out for calls that are made for a tenant. What a URL leads to is decided here and nowhere else.

Tools, webhooks and the discovery of a tenant's identity provider go through it. Backends, databases and secret stores do
not: their addresses are the operator's, who may well mean a private one.

Clauses:

* EGR-1  `fetch` gives the status, the headers and the body that the host answered; an error status is an answer.
* EGR-2  A URL that two readers could read differently, one that is not http or https, and one to a port that is not
         allowed raise `PermissionDenied` (`egress_denied`), and nobody is connected to.
* EGR-3  A host one of whose addresses is not public raises `PermissionDenied` (`egress_denied`), unless the operator named
         that very host and port; nobody is connected to.
* EGR-4  A name is resolved once, and the connection goes to an address that was checked. TLS is verified against the name.
* EGR-5  A redirect is an answer and is not followed. No proxy, cookie or credential of this process is used.
* EGR-6  A host that the caller's tenant is not entitled to raises `PermissionDenied` (`egress_denied`); so does a
         tenant that there is not. The scope `egress:node` stands for the node itself, which is under no tenant's list.
* EGR-7  At most `max_bytes` of a body are kept, which `truncated` tells; a head over `MAX_HEAD_BYTES` or a compressed
         answer raises `Unavailable` (`upstream_error`), and so does whoever can't be resolved, reached or verified.
* EGR-8  A call takes at most `timeout`, however slowly the host answers; beyond, `Unavailable` (`upstream_timeout`).
* EGR-9  `check` raises what `fetch` would raise before it connects, and connects to nobody.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Final, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from ports.context import AuthContext

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""The most that a caller may ask for."""
MAX_TIMEOUT: Final = timedelta(seconds=60)

ANY_HOST: Final = "*"

HostPattern: TypeAlias = Annotated[
    str, Meta(max_length=253, pattern=r"^(\*|(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+)$")
]
"""`*`, a host in small letters, or `*.` and a domain: every host below it, and not itself."""

Rule: TypeAlias = Literal["form", "port", "name", "address", "tenant"]
"""Why a URL was denied: `details["rule"]` of the error."""

Method: TypeAlias = Literal["GET", "POST"]


class Fetched(Struct, frozen=True, kw_only=True):
    """An answer: data of unknown origin."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    """Names in small letters, in the order they came."""
    body: bytes = b""
    truncated: bool = False

    def header(self, name: str, default: str = "") -> str:
        """The first header of that name, in small letters."""
        return next((value for one, value in self.headers if one == name), default)


class EgressPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently."""

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
        """One request and its answer. Retries nothing; another address of the host is tried where one takes no connection.

        Raises:
            InvalidArgument: a limit beyond the port's, or a header that is not the caller's to set.
            PermissionDenied: `egress_denied`, `details["rule"]` says by which `Rule`.
            Unavailable: `upstream_timeout`, or `upstream_error` with `details["reason"]`: resolve, connect, tls, answer.
        """
        ...

    async def check(self, auth: AuthContext, url: str) -> None:
        """Raise as `fetch` would before it connects: for a URL that somebody registers."""
        ...


def host_is_allowed(host: str, patterns: Sequence[str]) -> bool:
    """Whether `host`, in small letters, is one that the patterns name. An address is named by itself or by `*`."""
    for pattern in patterns:
        if pattern in (ANY_HOST, host):
            return True
        if pattern.startswith("*.") and host.endswith(pattern[1:]) and not _is_numeric(host):
            return True
    return False


def _is_numeric(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdigit()
