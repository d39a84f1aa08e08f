"""Reads of secrets, told: who read which reference, in which version, and how it went. Never a value."""

from collections.abc import Awaitable, Callable
from typing import Final

from observability import logs
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.secrets import Secret, parse_reference

_logger: Final = logs.logger("secrets")
_NO_REFERENCE: Final = "none"


class WatchedReads:
    """Reads by another one. Said when a reference is read first, and when what comes of it changes; counted always."""

    def __init__(
        self, read: Callable[[str], Awaitable[Secret]], reader: AuthContext, on_read: Callable[[str, str], None]
    ) -> None:
        """`on_read` is told the kind of reference and the code of how it went."""
        self._read = read
        self._reader = reader
        self._on_read = on_read
        self._said: dict[str, str] = {}

    async def read(self, reference: str) -> Secret:
        try:
            found = await self._read(reference)
        except AgentOSError as error:
            kind = _kind(reference)
            self._on_read(kind, error.code)
            if kind != _NO_REFERENCE and self._is_news(reference, error.code):
                _logger.warning(
                    "secret.unreadable", extra={**logs.who(self._reader), "reference": reference, "code": error.code}
                )
            raise
        self._on_read(_kind(reference), "ok")
        if self._is_news(reference, f"version {found.version}"):
            _logger.info(
                "secret.read", extra={**logs.who(self._reader), "reference": reference, "version": found.version}
            )
        return found

    def _is_news(self, reference: str, outcome: str) -> bool:
        before = self._said.get(reference)
        self._said[reference] = outcome
        return before != outcome


def _kind(reference: str) -> str:
    """Of what is no reference nothing is repeated: it may be the secret."""
    try:
        return parse_reference(reference).kind
    except AgentOSError:
        return _NO_REFERENCE
