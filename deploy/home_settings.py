"""What `AGENTOS_HOMES` says: databases that tenants may live in beside the shared one (ADR 0039). Pure."""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from adapters.postgres.move_tables import SHARED
from ports.errors import InvalidArgument

EMBEDDED: Final = "embedded"
MOST: Final = 32
"""A pool of connections in each service for each."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SHOWN: Final = re.compile(r"[A-Za-z0-9_.-]{0,40}")
"""May be quoted: a DSN, where a name should be, has other characters."""
_REFERENCE: Final = re.compile(r"(?:env|file):\S+")
_PORTS: Final = range(1, 65_536)


class Home(Struct, frozen=True, kw_only=True):
    name: str
    worker_port: int
    """Where its worker says whether it is ready."""
    url: str
    """A reference to the DSN of `ao_app`; empty for a database in the node's own PostgreSQL."""
    owner_url: str
    control_url: str

    @property
    def database(self) -> str:
        """Of an embedded one."""
        return f"home_{self.name}"


def parse_homes(text: str) -> tuple[Home, ...]:
    """`eu1=8092,env:EU1_URL,env:EU1_OWNER_URL,env:EU1_CONTROL_URL; lab=8093,embedded`.

    Raises:
        InvalidArgument: not that; the text says what, and never quotes what could be a secret.
    """
    found: list[Home] = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, told = entry.partition("=")
        parts = [part.strip() for part in told.split(",")]
        name = name.strip()
        if not _NAME.fullmatch(name) or name == SHARED or name in {home.name for home in found}:
            shown = repr(name) if _SHOWN.fullmatch(name) else "what stands before the = or in its place"
            raise InvalidArgument(
                f"AGENTOS_HOMES: {shown} can't name a home; write up to 32 small letters, digits, - or _, each name once, "
                f"and not {SHARED!r}"
            )
        port = int(parts[0]) if parts[0].isascii() and parts[0].isdigit() else 0
        if port not in _PORTS:
            raise InvalidArgument(f"AGENTOS_HOMES: the home {name!r} needs a port for its worker: {name}=8092,…")
        match parts[1:]:
            case [kind] if kind == EMBEDDED:
                found.append(Home(name=name, worker_port=port, url="", owner_url="", control_url=""))
            case [url, owner, control] if all(map(_REFERENCE.fullmatch, (url, owner, control))):
                found.append(Home(name=name, worker_port=port, url=url, owner_url=owner, control_url=control))
            case _:
                raise InvalidArgument(
                    f"AGENTOS_HOMES: the home {name!r} needs `{EMBEDDED}`, or three references (env:NAME or file:/path): "
                    "its address for the role ao_app, for ao_owner, and for ao_control"
                )
    if len(found) > MOST:
        raise InvalidArgument(f"AGENTOS_HOMES: {len(found)} homes are more than {MOST}")
    return tuple(found)


def problems_of(text: str, taken: Mapping[int, str], *, external: bool) -> list[str]:
    """What `agentos validate` says of the setting; `taken` are the ports of other services."""
    try:
        homes = parse_homes(text)
    except InvalidArgument as error:
        return [error.message]
    found: list[str] = []
    seen = dict(taken)
    for home in homes:
        if home.worker_port in seen:
            found.append(
                f"AGENTOS_HOMES: the port {home.worker_port} of {home.name!r} is {seen[home.worker_port]}'s too"
            )
        seen[home.worker_port] = f"the home {home.name}"
        if external and not home.url:
            found.append(
                f"AGENTOS_HOMES: {home.name!r} can't be embedded, because the node's database is not; name its own"
            )
    return found
