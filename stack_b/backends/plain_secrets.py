"""What looks like a secret in plain, where every reader of a configuration would see it. Pure."""

import re
from collections.abc import Iterator
from typing import Final

from ports.messages import Json

_NAMES: Final = re.compile(
    r"(?:.*[_-])?(?:api[_-]?key|access[_-]?key|secret|secret[_-]?(?:access[_-]?)?key|client[_-]?secret|passw(?:or)?d|"
    r"passphrase|authorization|auth[_-]?token|access[_-]?token|session[_-]?token|bearer|credentials?|private[_-]?key)",
    re.IGNORECASE,
)
# Of keys that have a form of their own.
_VALUES: Final = re.compile(
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}|\bAKIA[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}|\baos_[a-z0-9]+_[0-9a-f]{32}_|"
    r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bhv[sbr]\.[A-Za-z0-9_-]{10,}|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bbearer\s+\S{8,}|://[^\s/@:]+:[^\s/@]+@",
    re.IGNORECASE,
)
_MAX_DEPTH: Final = 64


def looks_secret(name: str, value: Json) -> bool:
    """Whether a member of that name has a text that should be a reference."""
    return isinstance(value, str) and bool(value) and bool(_NAMES.fullmatch(name) or _VALUES.search(value))


def plain_secrets(value: Json, path: str = "") -> Iterator[str]:
    """Where in `value` something looks like a secret; never what is there."""
    if path.count(".") > _MAX_DEPTH:
        return
    match value:
        case dict():
            for name, member in value.items():
                place = f"{path}.{name}" if path else str(name)
                if looks_secret(str(name), member):
                    yield place
                elif not isinstance(member, str):
                    yield from plain_secrets(member, place)
        case list() | tuple():
            for number, member in enumerate(value):
                if looks_secret("", member):
                    yield f"{path}[{number}]"
                else:
                    yield from plain_secrets(member, f"{path}[{number}]")
        case _:
            pass
