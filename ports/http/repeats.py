"""The same denial again and again is one entry of the audit a minute: nobody fills it by being refused."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeAlias

from ports.context import AuthContext
from ports.errors import PermissionDenied
from ports.ids import PrincipalId, TenantId
from ports.recent import Recent

NOTED_EVERY: Final = timedelta(minutes=1)
MAX_REMEMBERED: Final = 4_096
"""Denials; of one that was forgotten the next is noted."""


_Denial: TypeAlias = tuple[TenantId, str, PrincipalId, str, str, str, str]


class Repeats:
    """What was noted lately, in this process. The first is noted always, and so is one that could not be."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._noted: Recent[_Denial, bool] = Recent(MAX_REMEMBERED)

    def is_one(self, auth: AuthContext, method: str, template: str, error: PermissionDenied) -> bool:
        return self._noted.get(_denial(auth, method, template, error), self._monotonic()) is not None

    def noted(self, auth: AuthContext, method: str, template: str, error: PermissionDenied) -> None:
        until = self._monotonic() + NOTED_EVERY.total_seconds()
        self._noted.put(_denial(auth, method, template, error), True, until=until)


def _denial(auth: AuthContext, method: str, template: str, error: PermissionDenied) -> _Denial:
    """All that an entry says."""
    needed = str(error.details.get("required_scope", ""))
    return (auth.tenant, auth.namespace, auth.principal, method, template, error.code, needed)
