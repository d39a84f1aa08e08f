"""SecretsPort over a directory: one file per secret, readable by its owner only.

What an orchestrator mounts is such a directory too; its files are links, which may lead anywhere within it.
"""

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio.to_thread
from msgspec import Struct

from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, Unavailable, Unsupported
from ports.secrets import MAX_SECRET_BYTES, Secret, SecretCapabilities, SecretsPort, parse_name, usable

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WORLD: Final = stat.S_IRWXO | stat.S_IWGRP


class FileSecretsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    directory: str
    group_may_read: bool = False
    """For mounts whose files belong to a group of the service's."""


class FileSecrets:
    """Satisfies `SecretsPort`."""

    def __init__(self, config: FileSecretsConfig) -> None:
        self._directory = Path(config.directory)
        self._forbidden = _WORLD if config.group_may_read else _OTHERS

    @property
    def capabilities(self) -> SecretCapabilities:
        return SecretCapabilities()

    async def read(self, _auth: AuthContext, name: str) -> Secret:
        asked = parse_name(name)
        if asked.field is not None or asked.version is not None:
            raise Unsupported("files have neither fields nor versions; give each secret a file of its own")
        return await anyio.to_thread.run_sync(self.read_file, name)

    def read_file(self, name: str) -> Secret:
        """The same for a caller who may block. `name` is one that `parse_name` takes, without field and version."""
        if not self._directory.parts:
            raise Unavailable("this process has no directory of secrets; name one, or another store")
        root = self._directory.resolve()
        if not root.is_dir():
            raise Unavailable(f"the directory of secrets {str(self._directory)!r} is not there; make it, mode 0700")
        place = (root / name).resolve()
        if not place.is_relative_to(root):
            raise NotFound(f"there is no secret {name!r}: it leads out of {str(self._directory)!r}")
        try:
            # Not blocked by a pipe, and looked at once opened: what is checked is what is read.
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"there is no secret {name!r}; put it into {str(self._directory)!r}, mode 0600") from None
        except OSError as error:
            raise Unavailable(f"the secret {name!r} can't be read: {type(error).__name__}") from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise NotFound(f"there is no secret {name!r}: that is not a file")
            if stat.S_IMODE(found.st_mode) & self._forbidden:
                raise InvalidArgument(f"the secret {name!r} may be read by others on this machine; chmod 600 it")
            raw = _content(descriptor)
        finally:
            os.close(descriptor)
        value = raw.decode("utf-8", errors="replace")
        # Not the decoder's own error: it quotes what it could not read.
        if value.encode("utf-8") != raw:
            raise InvalidArgument(f"the secret {name!r} is not UTF-8 text")
        # Not a digest of the value: short ones could be guessed by it.
        return Secret(usable(value, name), version=f"{found.st_ino:x}.{found.st_mtime_ns:x}.{found.st_size:x}")


def _content(descriptor: int) -> bytes:
    """All of it, up to more than a secret may have: a read may give less than it was asked for."""
    found = b""
    while len(found) <= MAX_SECRET_BYTES + 1_024 and (more := os.read(descriptor, MAX_SECRET_BYTES)):
        found += more
    return found


@asynccontextmanager
async def open_secrets(config: FileSecretsConfig, _given: Given) -> AsyncIterator[SecretsPort]:
    yield FileSecrets(config)


SPEC: Final = AdapterSpec(
    config=FileSecretsConfig, capabilities=lambda _config: SecretCapabilities(), open=open_secrets
)
