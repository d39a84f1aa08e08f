"""What in a message's parts a backend would fetch or look up: only what lies outside of its own network. Pure.

A self-hosted backend fetches from where it stands. Only the text of a URL is looked at: whoever names a public host that
leads inside is not stopped here, but by the backend's own network (docs/threat-model.md).
"""

import re
from collections.abc import Iterator
from typing import Final

from ports import hosts
from ports.errors import InvalidArgument
from ports.messages import Json

FILE_ID: Final = "file_id"
"""A file of the provider's account, which all tenants share."""
MAX_URL_CHARS: Final = 2_048

_SAID: Final = frozenset({"annotations", "arguments", "citations", "input", "text"})
"""What a model reads and nobody fetches."""
_INLINE: Final = frozenset({"data", "file_data"})
_ABSOLUTE: Final = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*://|file:)", re.IGNORECASE)
_HTTPS: Final = re.compile(r"[hH][tT][tT][pP][sS]://([a-zA-Z0-9.-]+)(?::[0-9]{1,5})?(?:[/?#].*)?")
_UNREADABLE: Final = re.compile(r"[\x00-\x20\x7f\\]|\s")


def names_file(content: Json) -> bool:
    return isinstance(content, list) and any(
        name == FILE_ID and value is not None for _, name, value in _members(content, "")
    )


def check_urls(content: Json, path: str) -> None:
    """Raises `InvalidArgument` for a URL in `content` that must not be fetched."""
    for place, name, value in _members(content, path) if isinstance(content, list) else ():
        if not isinstance(value, str):
            continue
        is_url = name == "url" or name.endswith("_url") or (name in _INLINE and _ABSOLUTE.match(value))
        if is_url and value[:5].lower() != "data:" and not _is_public(value):
            raise InvalidArgument(
                f"{place} must be a data: URL, or an https: URL of a public host by its name",
                details={"path": place},
            )


def _is_public(url: str) -> bool:
    match = _HTTPS.fullmatch(url)
    if match is None or len(url) > MAX_URL_CHARS or _UNREADABLE.search(url):
        return False
    host = match[1].lower()
    # An address is no name, however it is written.
    return hosts.is_plain(host) and not hosts.is_number(host) and not hosts.is_local(host)


def _members(value: Json, path: str) -> Iterator[tuple[str, str, Json]]:
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _members(item, f"{path}[{number}]")
    elif isinstance(value, dict):
        for name, member in value.items():
            if name not in _SAID:
                yield f"{path}.{name[:64]}", name, member
                yield from _members(member, f"{path}.{name[:64]}")
