"""Denials of the egress port, told: who asked, and which rule refused. Never where to, which is the caller's text."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from observability import logs
from ports.context import AuthContext
from ports.egress import EgressPort, Fetched, Method
from ports.errors import PermissionDenied

_logger: Final = logs.logger("egress")


class WatchedEgress:
    """Satisfies `EgressPort` by another one."""

    def __init__(self, port: EgressPort, on_denial: Callable[[str], None]) -> None:
        self._port = port
        self._on_denial = on_denial

    async def fetch(
        self,
        auth: AuthContext,
        url: str,
        *,
        max_bytes: int,
        timeout: timedelta,
        method: Method = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Fetched:
        try:
            return await self._port.fetch(
                auth, url, max_bytes=max_bytes, timeout=timeout, method=method, headers=headers, body=body
            )
        except PermissionDenied as error:
            self._tell(auth, error)
            raise

    async def check(self, auth: AuthContext, url: str) -> None:
        try:
            await self._port.check(auth, url)
        except PermissionDenied as error:
            self._tell(auth, error)
            raise

    def _tell(self, auth: AuthContext, error: PermissionDenied) -> None:
        rule = str(error.details.get("rule", "other"))
        self._on_denial(rule)
        _logger.warning("egress.denied", extra={**logs.who(auth), "reason": rule, "code": error.code})
