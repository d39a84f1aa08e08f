"""SecretsPort in this process, for tests: a secret is a list of versions, each with its fields."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from adapters.inproc.store import InprocConfig, Store, store
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import NotFound, Unavailable
from ports.secrets import VALUE, Secret, SecretCapabilities, SecretsPort, parse_name, usable


@dataclass(slots=True)
class Secrets:
    """A table of a `Store`."""

    versions: dict[str, list[dict[str, str]]] = field(default_factory=dict, repr=False)
    away: bool = False

    def put(self, name: str, fields: Mapping[str, str]) -> None:
        self.versions.setdefault(name, []).append(dict(fields))

    def remove(self, name: str) -> None:
        self.versions.pop(name, None)


class InprocSecrets:
    """Satisfies `SecretsPort`."""

    def __init__(self, storage: Store) -> None:
        self._table = storage.table(Secrets)

    @property
    def capabilities(self) -> SecretCapabilities:
        return capabilities()

    async def read(self, _auth: AuthContext, name: str) -> Secret:
        asked = parse_name(name)
        if self._table.away:
            raise Unavailable("the store of secrets does not answer")
        versions = self._table.versions.get(asked.path, [])
        number = asked.version or len(versions)
        if not 0 < number <= len(versions) or (asked.field or VALUE) not in versions[number - 1]:
            raise NotFound(f"there is no secret {name!r}")
        return Secret(usable(versions[number - 1][asked.field or VALUE], name), version=str(number))


def capabilities() -> SecretCapabilities:
    return SecretCapabilities(versions=True, fields=True)


@asynccontextmanager
async def open_secrets(config: InprocConfig, _given: Given) -> AsyncIterator[SecretsPort]:
    yield InprocSecrets(store(config.name))


SPEC: Final = AdapterSpec(config=InprocConfig, capabilities=lambda _config: capabilities(), open=open_secrets)
