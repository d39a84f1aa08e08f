"""What Memory takes: the rules of MEM-7 that need no store, shared by its adapters and by whoever writes for them."""

import msgspec

from ports.errors import InvalidArgument
from ports.memory import MAX_KEY_CHARS
from ports.messages import Json


def checked(key: str, value: Json, *, max_value_bytes: int) -> str:
    """The value as JSON text. Raises `InvalidArgument` for what no `put` takes."""
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidArgument(f"a memory key has 1 to {MAX_KEY_CHARS} characters, not {len(key)}")
    if any(char == "\x00" or "\ud800" <= char <= "\udfff" for char in key):
        raise InvalidArgument("a memory key may hold neither NUL nor a lone surrogate")
    try:
        encoded = msgspec.json.encode(value)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise InvalidArgument(
            "the value can't be written as JSON: it holds a lone surrogate or an unknown type"
        ) from error
    if len(encoded) > max_value_bytes:
        raise InvalidArgument(f"a value of {len(encoded)} bytes is over the limit of {max_value_bytes}")
    return encoded.decode()
