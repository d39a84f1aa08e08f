"""The database of a service that serves tenants of all homes, and the homes' beside it."""

from collections.abc import Mapping

import msgspec

from deploy.roots.environment import Environment, resolve
from ports.errors import InvalidArgument
from ports.messages import Json


def database_of(env: Environment) -> dict[str, Json]:
    """The configuration of the PostgreSQL adapters; `AGENTOS_HOME_URL_FILES` is `<name>=<path>`, several apart by `;`."""
    database: dict[str, Json] = {"dsn": env.secret_file("DATABASE_URL_FILE")}
    homes: list[Json] = []
    for entry in filter(None, env.text("HOME_URL_FILES").split(";")):
        name, _, path = entry.partition("=")
        if not name or not path:
            raise InvalidArgument(f"AGENTOS_HOME_URL_FILES: {entry!r} is no <name>=<path>")
        homes.append([name, resolve(f"file:{path}", env.variables)])
    return {**database, "homes": homes} if homes else database


def homes_in(database: Mapping[str, Json]) -> dict[str, str]:
    """DSNs by home, of what `database_of` made."""
    return dict(msgspec.convert(database.get("homes", []), list[tuple[str, str]]))
