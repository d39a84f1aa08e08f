"""What the gateway writes down of prompts and answers is sealed first: whoever has the database alone reads nothing.

A node's keys are in a file, one a line, `<id>:<64 hexadecimal digits>`; the first seals, all of them open. Each tenant has
keys of its own, derived from them for one purpose each, and each text one derived from that: no key seals twice, so that a
nonce can't repeat. What a text is about is sealed with it: moved to another tenant or request it does not open.
"""

import hmac
import re
import secrets
import zlib
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ports.errors import InvalidArgument, Unavailable
from ports.ids import TenantId

KEY_BYTES: Final = 32
_SALT_BYTES: Final = 16
_NONCE: Final = bytes(12)
_FORMAT: Final = 1
_LINE: Final = re.compile(r"([A-Za-z0-9_-]{1,32}):([0-9a-fA-F]{64})")
_MOST_BYTES: Final = 256 * 1024 * 1024
"""Of one text, unpacked."""
_QUICK: Final = 1


class Vault:
    """Seals under the first of its keys, and opens under any."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)
        self._current = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"Vault({', '.join(self._keys)})"

    def seal(self, tenant: TenantId, purpose: str, about: str, text: bytes) -> bytes:
        """`text` for nobody to read, with the id of the key it opens with in front."""
        salt = secrets.token_bytes(_SALT_BYTES)
        name = self._current.encode()
        head = bytes((_FORMAT, len(name))) + name + salt
        cipher = AESGCM(self._key(self._current, tenant, purpose, salt))
        return head + cipher.encrypt(_NONCE, zlib.compress(text, _QUICK), head + about.encode())

    def open(self, tenant: TenantId, purpose: str, about: str, sealed: bytes) -> bytes:
        """What was sealed for the same tenant, purpose and subject.

        Raises:
            Unavailable: its key is not here, or it is another one than it was sealed with. Asking again is of no use.
        """
        if len(sealed) < 2 or sealed[0] != _FORMAT:  # noqa: PLR2004 - the two bytes in front
            raise _shut("it is not in a form that this version knows")
        end = 2 + sealed[1]
        name, salt = sealed[2:end].decode("ascii", "replace"), sealed[end : end + _SALT_BYTES]
        head, rest = sealed[: end + _SALT_BYTES], sealed[end + _SALT_BYTES :]
        if name not in self._keys:
            raise _shut(f"its key {name!r} is not among those of this node; put that line back into the file of keys")
        try:
            packed = AESGCM(self._key(name, tenant, purpose, salt)).decrypt(_NONCE, rest, head + about.encode())
        except InvalidTag:
            raise _shut(
                f"the key {name!r} of this node is another one than it was sealed with, or it was changed since"
            ) from None
        return zlib.decompressobj().decompress(packed, _MOST_BYTES)

    def _key(self, name: str, tenant: TenantId, purpose: str, salt: bytes) -> bytes:
        of_tenant = hmac.digest(self._keys[name], f"{purpose}\0{tenant}".encode(), "sha256")
        return hmac.digest(of_tenant, salt, "sha256")


def new_vault() -> Vault:
    """With a key of this process, which no other one has."""
    return Vault({"process": secrets.token_bytes(KEY_BYTES)})


def new_line() -> str:
    """A line for the file of keys."""
    return f"k{secrets.token_hex(4)}:{secrets.token_hex(KEY_BYTES)}\n"


def parse_keys(text: str) -> Vault:
    """Raises `InvalidArgument`, with the number of the line, for what is no file of keys. It never says what is in it."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InvalidArgument(f"line {number} is no key: write an id, a colon and 64 hexadecimal digits")
        if match[1] in keys:
            raise InvalidArgument(f"line {number} names the key {match[1]!r} again; each has an id of its own")
        keys[match[1]] = bytes.fromhex(match[2])
    if not keys:
        raise InvalidArgument("it holds no key; a line is an id, a colon and 64 hexadecimal digits")
    return Vault(keys)


def _shut(why: str) -> Unavailable:
    return Unavailable(f"what was sealed can't be opened: {why}", retryable=False)
