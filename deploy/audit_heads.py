"""Signed heads of the audit: a file that is only appended to, outside the database, and what it vouches for.

A line is a statement (when, the digest of the line before, and the heads that moved since: tenant, number, hash) and its
Ed25519 signature. Whoever has the database but not this node's key can't write such a line, and whoever takes one out of
the middle breaks the digests. That the newest lines are taken away is seen only beside a copy elsewhere.
"""

import base64
import binascii
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from msgspec import Struct
from msgspec.structs import replace

from adapters.token_auth.issuer import load_key
from ports.audit import Head
from ports.audit_rules import chain_name
from ports.errors import InvalidArgument, Unavailable

FILE: Final = "heads.jsonl"
PUBLIC_KEY: Final = "public_key.pem"
_LOCK: Final = "lock"


class Statement(Struct, frozen=True, kw_only=True):
    at: datetime
    previous: str
    """SHA-256 of the line before, without its end; empty for the first."""
    key: str
    heads: tuple[tuple[str, int, str], ...]
    """Name of the chain (`audit_rules.chain_name`), number, hash."""


class _Line(Struct, frozen=True, kw_only=True):
    statement: msgspec.Raw
    signature: str


class Signed(Struct, frozen=True, kw_only=True):
    """What a file of heads vouches for."""

    heads: dict[str, dict[int, str]]
    """Hashes by number, by the name of the chain."""
    lines: int
    newest: datetime | None
    last: str
    """The digest that the next line has to name."""
    bad: str = ""
    """What contradicts in the file itself; empty when nothing does. What comes after it is not believed."""

    def newest_of(self, name: str) -> tuple[int, str]:
        known = self.heads.get(name, {})
        seq = max(known, default=0)
        return seq, known.get(seq, "")


def public_key(path: Path) -> Ed25519PublicKey:
    """Of a file with the public or the private key."""
    raw = path.read_bytes()
    try:
        key = load_key(path).public_key() if b"PRIVATE KEY" in raw else load_pem_public_key(raw)
    except ValueError as error:
        raise InvalidArgument(f"{path} is no key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidArgument(f"{path} holds no Ed25519 key")
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def signed_line(key: Ed25519PrivateKey, at: datetime, previous: str, heads: Sequence[Head]) -> bytes:
    statement = Statement(
        at=at,
        previous=previous,
        key=key_id(key.public_key()),
        heads=tuple((chain_name(one.tenant, one.home), one.seq, one.hash) for one in heads),
    )
    raw = msgspec.json.encode(statement)
    signature = base64.b64encode(key.sign(raw)).decode()
    return msgspec.json.encode(_Line(statement=msgspec.Raw(raw), signature=signature))


NOTHING: Final = Signed(heads={}, lines=0, newest=None, last="")


def read_heads(raw: bytes, keys: Sequence[Ed25519PublicKey], before: Signed = NOTHING) -> Signed:
    """What the lines say, up to the first that contradicts. What was not written to its end is no line.

    `before` is what the lines before these said.
    """
    by_id = {key_id(key): key for key in keys}
    heads = {tenant: dict(known) for tenant, known in before.heads.items()}
    newest, last, bad, lines = before.newest, before.last, before.bad, before.lines
    for number, line in enumerate(_whole_lines(raw), start=before.lines + 1):
        statement, bad = _believed(line, by_id, last)
        if statement is None:
            bad = f"line {number} of the signed heads {bad}"
            break
        newest, last, lines = statement.at, digest(line), number
        for tenant, seq, hash_ in statement.heads:
            if heads.setdefault(tenant, {}).setdefault(seq, hash_) != hash_:
                bad = f"line {number} of the signed heads says another hash of {tenant} {seq} than an earlier one"
    return Signed(heads=heads, lines=lines, newest=newest, last=last, bad=bad)


def digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _whole_lines(raw: bytes) -> list[bytes]:
    # Who was killed while writing leaves a piece without an end; whoever writes next ends it with a blank mark before.
    return [line for line in raw.split(b"\n")[:-1] if line and not line.endswith(b"\x00")]


def _believed(line: bytes, keys: Mapping[str, Ed25519PublicKey], last: str) -> tuple[Statement | None, str]:
    try:
        found = msgspec.json.decode(line, type=_Line)
        statement = msgspec.json.decode(found.statement, type=Statement)
        signature = base64.b64decode(found.signature, validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        return None, "can't be read"
    key = keys.get(statement.key)
    if key is None:
        return None, f"is signed with the key {statement.key!r}, which is none that was given"
    try:
        key.verify(signature, bytes(found.statement))
    except InvalidSignature:
        return None, "has a signature that is not its own"
    if statement.previous != last:
        return None, "does not follow the line before it: one was changed or taken away"
    return statement, ""


class HeadsFile:
    """The file in `directory`, and its copy elsewhere. Several processes may hold one; one at a time writes."""

    def __init__(self, directory: Path, key: Ed25519PrivateKey, *, copy: Path | None = None) -> None:
        self._directory = directory
        self._key = key
        self._copy = copy
        self._seen = 0
        self._said = NOTHING

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether we are the one that writes, for as long as the block runs."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def read(self) -> Signed:
        """The newest head of each tenant. Reads on from where it stopped."""
        raw = _bytes_of(self._directory / FILE, after=self._seen)
        if raw is None:
            return replace(self._said, bad="the file of signed heads has become shorter")
        end = raw.rfind(b"\n") + 1
        said = read_heads(raw[:end], [self._key.public_key()], self._said)
        self._seen += end
        newest = {tenant: max(known.items()) for tenant, known in said.heads.items()}
        self._said = replace(said, heads={tenant: {seq: hash_} for tenant, (seq, hash_) in newest.items()})
        return self._said

    def append(self, at: datetime, previous: str, heads: Sequence[Head]) -> None:
        path = self._directory / FILE
        torn = path.exists() and path.stat().st_size > self._seen
        line = signed_line(self._key, at, previous, heads)
        _append(path, (b"\x00\n" if torn else b"") + line + b"\n")
        # So that we know how long it is: shorter it never becomes.
        self.read()
        known = self._directory / PUBLIC_KEY
        if not known.exists():
            known.write_bytes(public_pem(self._key.public_key()))

    def copy(self) -> None:
        """Bring the copy up to the file. It is only ever added to, whatever the file has become."""
        if self._copy is None:
            return
        target = self._copy / FILE
        try:
            self._copy.mkdir(mode=0o700, parents=True, exist_ok=True)
            missing = _bytes_of(self._directory / FILE, after=target.stat().st_size if target.exists() else 0)
            if missing is None:
                raise Unavailable(f"the copy of the signed heads in {self._copy} is longer than they are")
            if missing:
                _append(target, missing)
        except OSError as error:
            raise Unavailable(f"the copy of the signed heads in {self._copy} can't be written: {error}") from error


def _append(path: Path, raw: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        view = memoryview(raw)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes_of(path: Path, *, after: int) -> bytes | None:
    """None: there are fewer."""
    if not path.exists():
        return b"" if after == 0 else None
    with path.open("rb") as file:
        if path.stat().st_size < after:
            return None
        file.seek(after)
        return file.read()
