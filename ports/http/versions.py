"""Versions over HTTP: an `ETag` is a number in quotes, and `If-Match` says which one a change is of. One way for all."""

import re
from typing import Final

from ports.errors import InvalidArgument

ANY: Final = "*"
_MATCH: Final = re.compile(r'"(0|[1-9][0-9]{0,17})"')


def etag(version: int) -> str:
    return f'"{version}"'


def if_match(sent: str | None, *, of: str, required: bool) -> int | None:
    """The version; None: whatever is there. `of` says in words what was looked at.

    Raises:
        InvalidArgument: it is no ETag of ours, or is missing.
    """
    if sent is None and required:
        raise InvalidArgument(
            f"send If-Match with the ETag of {of} that you changed, so that nobody else's change is lost",
            details={"path": "If-Match"},
        )
    if sent is None or sent == ANY:
        return None
    match = _MATCH.fullmatch(sent)
    if match is None:
        raise InvalidArgument('If-Match is an ETag of ours, such as "7", or *', details={"path": "If-Match"})
    return int(match[1])
