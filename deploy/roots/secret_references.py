"""What a reference stands for, read in the process that uses it: a variable, a file, or a name in the store of secrets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from deploy.roots.environment import resolve
from deploy.roots.wiring import Choice
from ports.adapter import find
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument
from ports.secrets import Secret, SecretsPort, parse_reference

FILES: Final = "files"


class References:
    def __init__(self, variables: Mapping[str, str], store: SecretsPort, reader: AuthContext) -> None:
        self._variables = variables
        self._store = store
        self._reader = reader

    async def read(self, reference: str) -> Secret:
        """Raises `AgentOSError`, which never tells the secret."""
        found = parse_reference(reference)
        if found.kind == "secret":
            return await self._store.read(self._reader, found.where)
        version = "set" if found.kind == "env" else _state(Path(found.where))
        return Secret(resolve(reference, self._variables), version=version)


def check_secret(reference: str, variables: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` for what is no reference, or leads nowhere as far as this process can see.

    What is in the store is for the gateway to find out: it alone may ask.
    """
    if parse_reference(reference).kind != "secret":
        resolve(reference, variables)


def secrets_of_a_node(text: str, directory: str) -> Choice:
    """The adapter for the port, from the JSON object in `text`; without one, the files in `directory`.

    Raises:
        InvalidArgument: not such an object, no such adapter, or a configuration that it refuses.
    """
    if not text:
        return Choice(adapter=FILES, config={"directory": directory})
    try:
        choice = msgspec.json.decode(text, type=Choice)
        spec = find("secrets", choice.adapter)
        spec.capabilities(msgspec.convert(choice.config, spec.config))
    except (msgspec.DecodeError, AgentOSError) as error:
        raise InvalidArgument(
            f"AGENTOS_SECRETS is not usable: {error}; write a JSON object such as "
            '{"adapter": "kv", "config": {"url": "https://…", "token_file": "/…"}}'
        ) from None
    return choice


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "absent"
    return f"{found.st_ino:x}.{found.st_mtime_ns:x}.{found.st_size:x}"
