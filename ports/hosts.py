"""Which texts are names of public hosts, as far as a text tells. Pure."""

import re
from typing import Final

MAX_NAME_CHARS: Final = 253
"""RFC 1035."""
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Names that never mean a public host (RFC 6761, 6762, 7686, 8375, 9476, and what clouds and offices use).
_LOCAL_SUFFIXES: Final = frozenset(
    {"localhost", "localdomain", "local", "internal", "intranet", "lan", "corp", "home", "private", "invalid", "test",
     "onion", "alt", "arpa"}
)  # fmt: skip


def is_plain(host: str) -> bool:
    """Whether it is labels with dots between them, in lower case; an address may be that, too."""
    return len(host) <= MAX_NAME_CHARS and all(_LABEL.fullmatch(label) for label in host.split("."))


def is_number(host: str) -> bool:
    """Whether some resolver would read it as an address: 2130706433, 0x7f.1 and 0177.0.0.1 as well as 127.0.0.1."""
    return _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]) is not None


def is_local(host: str) -> bool:
    """Whether a name never means a public host."""
    return "." not in host or host.rpartition(".")[2] in _LOCAL_SUFFIXES
