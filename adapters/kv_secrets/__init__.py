"""SecretsPort over a secret manager that speaks the KV version 2 API: OpenBao, Vault and what is compatible.

`api.py` is one call and its answer, `session.py` keeps a token that works, this module reads, and remembers for seconds.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from adapters.kv_secrets.api import Api, check_url, open_api
from adapters.kv_secrets.session import Session, approle_session, token_session
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, Unavailable
from ports.secrets import VALUE, Secret, SecretCapabilities, SecretsPort, parse_name, usable

MAX_REMEMBERED: Final = 256

PathText = Annotated[str, Meta(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")]


class KvSecretsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    """Of the server, without a path; https, or http on this machine."""
    mount: PathText = "secret"
    prefix: PathText | None = None
    """Names are below it: what the gateway may be told to read is what its token may read there, and no more."""
    namespace: str = ""
    token_file: str = ""
    """A file with a token, read again when the server refuses it: an agent beside may replace it."""
    approle_file: str = ""
    """A JSON file with `role_id` and `secret_id`: a token is got with it, renewed, and got again."""
    approle_mount: PathText = "approle"
    ca_file: str = ""
    timeout_s: Annotated[float, Meta(gt=0, le=30)] = 5.0
    fresh_s: Annotated[float, Meta(ge=0, le=300)] = 5.0
    """How long a value that was read is given out again."""


class KvSecrets:
    """Satisfies `SecretsPort`."""

    def __init__(self, config: KvSecretsConfig, api: Api, session: Session, clock: Clock) -> None:
        self._config = config
        self._api = api
        self._session = session
        self._clock = clock
        self._remembered: dict[str, tuple[Secret, float]] = {}

    @property
    def capabilities(self) -> SecretCapabilities:
        return capabilities_of(self._config)

    async def read(self, _auth: AuthContext, name: str) -> Secret:
        asked = parse_name(name)
        found = self._remembered.get(name)
        if found is not None and self._clock.monotonic() - found[1] < self._config.fresh_s:
            return found[0]
        # Whatever happens now, what was remembered is over.
        self._remembered.pop(name, None)
        began = self._clock.monotonic()
        path = f"{self._config.prefix}/{asked.path}" if self._config.prefix else asked.path
        query = f"?version={asked.version}" if asked.version else ""
        answer = await self._session.call("GET", f"{self._config.mount}/data/{path}{query}")
        secret = _secret(answer, name, asked.field or VALUE)
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[name] = (secret, began)
        return secret


def _secret(answer: Any, name: str, field: str) -> Secret:
    """From the body of a 200; None stands for a 404."""
    data = answer.get("data") if isinstance(answer, dict) else None
    fields, about = (data.get("data"), data.get("metadata")) if isinstance(data, dict) else (None, None)
    if answer is None or (isinstance(about, dict) and fields is None):
        raise NotFound(f"there is no secret {name!r}, or that version of it is deleted")
    if not isinstance(fields, dict) or not isinstance(about, dict) or not isinstance(about.get("version"), int):
        raise Unavailable("the secret manager answered something else than KV version 2; check url and mount")
    value = fields.get(field)
    if value is None:
        raise NotFound(f"the secret {name!r} has no field {field!r}; write path#field")
    if not isinstance(value, str):
        raise InvalidArgument(f"the secret {name!r} is not text")
    return Secret(usable(value, name), version=str(about["version"]))


def capabilities_of(config: KvSecretsConfig) -> SecretCapabilities:
    check_config(config)
    return SecretCapabilities(fresh_for=timedelta(seconds=config.fresh_s), versions=True, fields=True)


def check_config(config: KvSecretsConfig) -> None:
    """Raise `InvalidArgument` for what can't be meant; contacts nobody."""
    check_url(config.url)
    if bool(config.token_file) == bool(config.approle_file):
        raise InvalidArgument("kv secrets need one of token_file and approle_file")


@asynccontextmanager
async def open_secrets(config: KvSecretsConfig, given: Given) -> AsyncIterator[SecretsPort]:
    check_config(config)
    async with open_api(
        config.url, namespace=config.namespace, ca_file=config.ca_file, timeout=timedelta(seconds=config.timeout_s)
    ) as api:
        session = (
            token_session(api, given.clock, file=config.token_file)
            if config.token_file
            else approle_session(api, given.clock, file=config.approle_file, mount=config.approle_mount)
        )
        yield KvSecrets(config, api, session, given.clock)


SPEC: Final = AdapterSpec(config=KvSecretsConfig, capabilities=capabilities_of, open=open_secrets)
