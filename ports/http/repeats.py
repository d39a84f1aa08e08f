"""The same denial again and again is one entry of the audit a minute: nobody fills it by being refused."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from ports.context import AuthContext
from ports.errors import PermissionDenied
from ports.http.routes import Route
from ports.ids import PrincipalId, TenantId

NOTED_EVERY: Final = timedelta(minutes=1)
MAX_REMEMBERED: Final = 4_096
"""Denials; of one that was forgotten the next is noted."""


class Repeats:
    """What was noted lately, in this process. The first is noted always, and so is one that could not be."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._noted: dict[tuple[TenantId, str, PrincipalId, str, str, str, str], float] = {}

    def is_one(self, auth: AuthContext, route: Route, error: PermissionDenied) -> bool:
        noted = self._noted.get(_key(auth, route, error))
        return noted is not None and self._monotonic() - noted < NOTED_EVERY.total_seconds()

    def noted(self, auth: AuthContext, route: Route, error: PermissionDenied) -> None:
        key = _key(auth, route, error)
        self._noted.pop(key, None)
        while len(self._noted) >= MAX_REMEMBERED:
            del self._noted[next(iter(self._noted))]
        self._noted[key] = self._monotonic()


def _key(
    auth: AuthContext, route: Route, error: PermissionDenied
) -> tuple[TenantId, str, PrincipalId, str, str, str, str]:
    needed = str(error.details.get("required_scope", ""))
    return (auth.tenant, auth.namespace, auth.principal, route.method, route.template, error.code, needed)
