"""API keys: `aos_<env>_<key id>_<secret>`.

The prefix makes a leaked key recognisable to scanners, the id makes it revocable without knowing it, and of the secret
only the SHA-256 is stored: with 256 bits of randomness there is nothing for a slow hash to protect.
"""

import hashlib
import re
import secrets
import uuid
from dataclasses import dataclass, field
from typing import Final

from ports.errors import InvalidArgument
from ports.ids import KeyId, minted, uuid_of

PREFIX: Final = "aos_"

_SECRET_BYTES: Final = 32
_ENV: Final = re.compile(r"[a-z0-9]{1,16}")
_KEY: Final = re.compile(r"aos_([a-z0-9]{1,16})_([0-9a-f]{32})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedKey:
    env: str
    key_id: KeyId
    secret: str = field(repr=False)


def new_secret() -> str:
    """256 random bits as text; shown to its owner once and never stored."""
    return secrets.token_hex(_SECRET_BYTES)


def digest(secret: str) -> bytes:
    """What the tenant directory stores of a secret, and looks it up by."""
    return hashlib.sha256(secret.encode("ascii")).digest()


def render(env: str, key_id: KeyId, secret: str) -> str:
    """The key as its owner uses it. `env` says where it is valid, for people: `demo`, `dev`, `prod`."""
    value = uuid_of("key", key_id)
    if value is None or _ENV.fullmatch(env) is None:
        raise InvalidArgument(f"no API key can be made of the environment {env!r} and the key id {key_id!r}")
    return f"{PREFIX}{env}_{value.hex}_{secret}"


def parse(text: str) -> ParsedKey | None:
    """The parts of an API key, or None when `text` can't be one."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    return ParsedKey(env=match[1], key_id=KeyId(minted("key", uuid.UUID(hex=match[2]))), secret=match[3])
