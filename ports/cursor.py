"""Cursors of listings: opaque to callers, a position to the adapter that made them.

A cursor says which listing it belongs to, so that one of runs is refused by a listing of agents. It is not a secret and
grants nothing: every statement it goes into names the caller's tenant.
"""

import base64
import binascii
from typing import Final, TypeVar

import msgspec

from ports.errors import InvalidArgument
from ports.messages import Json

MAX_CURSOR_CHARS: Final = 512

PositionT = TypeVar("PositionT")


def encode_cursor(kind: str, position: Json) -> str:
    """The cursor of `position`, anything msgspec can write as JSON, in the listing `kind`."""
    packed = msgspec.json.encode((kind, position))
    return base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=")


def decode_cursor(kind: str, cursor: str, shape: type[PositionT]) -> PositionT:
    """The position that `encode_cursor(kind, …)` was given, as a `shape` such as `tuple[datetime, str]`.

    Raises:
        InvalidArgument: this can't be a cursor of ours, or belongs to another listing.
    """
    if len(cursor) > MAX_CURSOR_CHARS:
        raise _refusal()
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        packed = base64.b64decode(padded, altchars=b"-_", validate=True)
        # No position of ours holds a NUL, and some stores can't take one.
        if b"\\u0000" in packed:
            raise _refusal()
        found, position = msgspec.json.decode(packed, type=tuple[str, msgspec.Raw])
        decoded = msgspec.json.decode(position, type=shape)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise _refusal() from error
    if found != kind:
        raise _refusal()
    return decoded


def _refusal() -> InvalidArgument:
    return InvalidArgument("the cursor is not one of this listing; start again without a cursor")
