"""How people write a principal's name, in commands and over HTTP."""

import re
from typing import Final

MAX_CHARS: Final = 128
CHARACTERS: Final = f"1 to {MAX_CHARS} letters, digits and any of . _ : @ -"
OWN_CHARACTERS: Final = (
    f"1 to {MAX_CHARS} letters, digits and any of . _ @ -; a : is in names that issuers elsewhere give"
)

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:@-]{{0,{MAX_CHARS - 1}}}")


def is_name(text: str) -> bool:
    """Whether a principal of a tenant may be called so, whoever gave it its name."""
    return _NAME.fullmatch(text) is not None


def is_own_name(text: str) -> bool:
    """Whether the node itself may give a principal this name: `acme:ann` is who an issuer elsewhere says so of."""
    return ":" not in text and is_name(text)
