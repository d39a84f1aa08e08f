"""SecretsPort: what the name of a secret stands for, read where it is used and nowhere kept.

Configurations, databases and messages hold references (`env:NAME`, `file:/path`, `secret:name`) and never values. The first
two are of the process and the machine; a name is of the store that this port is over.

Clauses (each has a test in `conformance.secrets`):

* SEC-1  `read` gives the value that a name stands for now, without the white space around it, and its version.
* SEC-2  A name that leads nowhere raises `NotFound`, which tells the name.
* SEC-3  A text that is no name (`parse_name`) raises `InvalidArgument`, which does not repeat it: it may be a secret in the
         wrong place.
* SEC-4  A change is seen `capabilities.fresh_for` later at most, under another version. What did not change keeps its
         version.
* SEC-5  A value is shown by `Secret.reveal` and by nothing else: neither as text, nor in JSON, nor pickled.
* SEC-6  A store that can't be asked raises `Unavailable`. A value older than `fresh_for` is never given instead.
* SEC-7  `name@version` gives the value of that version where `capabilities.versions`; one that is gone raises `NotFound`.
         Without the ability it raises `Unsupported`.
* SEC-8  A value that is empty, over `MAX_SECRET_BYTES`, or has other control characters than tabs and line ends raises
         `InvalidArgument`.
* SEC-9  No error tells a value, in its text or in what caused it.
* SEC-10 `name#field` gives one member of a secret that has several where `capabilities.fields`; one that is not there
         raises `NotFound`. Without the ability it raises `Unsupported`.
"""

import hmac
import re
from datetime import timedelta
from typing import Final, Literal, NoReturn, Protocol, TypeAlias

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import InvalidArgument

MAX_SECRET_BYTES: Final = 64 * 1024
MAX_NAME_CHARS: Final = 250
VALUE: Final = "value"
"""The field that a name without one stands for."""

_NAME: Final = re.compile(
    r"(?P<path>[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,7})"
    r"(?:#(?P<field>[A-Za-z0-9][A-Za-z0-9._-]{0,99}))?(?:@(?P<version>[1-9][0-9]{0,8}))?"
)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_REFERENCE: Final = re.compile(r"(env|file|secret):(.+)", re.DOTALL)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Kind: TypeAlias = Literal["env", "file", "secret"]


class Secret:
    """A value that does not tell itself."""

    __slots__ = ("_value", "version")

    def __init__(self, value: str, *, version: str) -> None:
        self._value = value
        self.version = version
        """Equal for what did not change; says nothing about the value."""

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"<secret, version {self.version!r}>"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self.version)

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a secret is not to be written down")


class SecretName(Struct, frozen=True, kw_only=True):
    path: str
    field: str | None = None
    version: int | None = None


class Reference(Struct, frozen=True, kw_only=True):
    kind: Kind
    where: str


class SecretCapabilities(Struct, frozen=True, kw_only=True):
    fresh_for: timedelta = timedelta(0)
    """How long a value may be given that was read before."""
    versions: bool = False
    fields: bool = False


class SecretsPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently."""

    @property
    def capabilities(self) -> SecretCapabilities: ...

    async def read(self, auth: AuthContext, name: str) -> Secret:
        """Who reads is told for the record; the store decides by what this node is.

        Raises:
            InvalidArgument: no name, or a value that can't be used.
            NotFound: nothing of that name, field or version.
            Unsupported: a field or a version where the store has none.
            Unavailable: the store does not answer, is sealed, or refuses this node (`upstream_auth_error`).
        """
        ...


def parse_name(text: str) -> SecretName:
    """`path[#field][@version]`. Raises `InvalidArgument`, without repeating the text."""
    match = _NAME.fullmatch(text) if len(text) <= MAX_NAME_CHARS else None
    if match is None:
        raise InvalidArgument("that is not the name of a secret; write path, path#field or path@version")
    return SecretName(
        path=match["path"], field=match["field"], version=int(match["version"]) if match["version"] else None
    )


def parse_reference(text: str) -> Reference:
    """Raises `InvalidArgument`, without repeating the text: it may be the secret itself."""
    match = _REFERENCE.fullmatch(text)
    if match is not None:
        match match[1], match[2]:
            case "env", where if _VARIABLE.fullmatch(where):
                return Reference(kind="env", where=where)
            case "file", where if where.startswith("/") and "\x00" not in where:
                return Reference(kind="file", where=where)
            case "secret", where:
                parse_name(where)
                return Reference(kind="secret", where=where)
            case _:
                pass
    raise InvalidArgument("a secret must be a reference: env:NAME, file:/path or secret:name")


def is_reference(text: str) -> bool:
    try:
        parse_reference(text)
    except InvalidArgument:
        return False
    return True


def usable(value: str, name: str) -> str:
    """`value` without the white space around it. Raises `InvalidArgument` for one that can't be used."""
    stripped = value.strip()
    if not stripped:
        raise InvalidArgument(f"the secret {name!r} is empty")
    if len(stripped.encode("utf-8", errors="replace")) > MAX_SECRET_BYTES:
        raise InvalidArgument(f"the secret {name!r} is over {MAX_SECRET_BYTES} bytes")
    if _UNPRINTABLE.search(stripped) or any("\ud800" <= char <= "\udfff" for char in stripped):
        raise InvalidArgument(f"the secret {name!r} has control characters; it must be text")
    return stripped
