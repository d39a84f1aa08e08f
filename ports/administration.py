"""Administration: what the platform does to a tenant's data, and no tenant does.

Clauses (each has a test in `conformance.administration`):

* ADM-1  Every call needs the scope `admin:platform`, whatever else the caller holds, and changes nothing without it.
* ADM-2  `kill` ends an open run at once, whoever holds it: it is `cancelled`, its last event is `run.cancelled` with the
         reason, no step of it is left begun, and what its worker appends afterwards raises `Conflict`.
* ADM-3  A run that is over stays as it is, and `kill` returns it. One that is not of the named tenant and namespace raises
         `NotFound`.
* ADM-4  `erase` refuses with `Conflict` a tenant that is active, one with a run that is not over, and one of which
         something is held (see `ports.privacy`), and changes nothing. A tenant that never was raises `NotFound`.
* ADM-5  `erase` removes at most `limit` rows, says how many, and is `done` when there are no more. Repeated until then,
         whoever repeats it, it takes the tenant, its keys, its runs and everything else of it, but for the audit.
* ADM-6  What is another tenant's stays.
* ADM-7  The id of a tenant whose erasing has begun is taken for good: `TenantDirectory.create` raises `Conflict`. Erasing
         again what is erased removes nothing and is `done`.
* ADM-8  `exported` gives the export that the first call of `erase` named, for good, and None before it.
"""

from typing import Final, Protocol

from msgspec import Struct

from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import Conflict, InvalidArgument
from ports.ids import RunId, TenantId
from ports.run_state import Run

MAX_ERASED_AT_ONCE: Final = 10_000
"""Rows that one call of `erase` may remove."""
MAX_REASON_CHARS: Final = 500


class Erased(Struct, frozen=True, kw_only=True):
    removed: int
    done: bool


class Administration(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently. Changes are noted in the tenant's audit."""

    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        """The run as it then stands."""
        ...

    async def erase(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str, limit: int) -> Erased:
        """`export_sha256` names what was exported before; it is kept with the tenant's id. The first call says which."""
        ...

    async def exported(self, auth: AuthContext, tenant: TenantId) -> str | None:
        """Of a tenant whose erasing has begun: what was exported before. It can't be exported any more."""
        ...


def check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidArgument(f"the reason may have {MAX_REASON_CHARS} characters, not {len(reason)}")


def check_erasing(auth: AuthContext, limit: int) -> None:
    auth.require(ADMIN_PLATFORM)
    if not 1 <= limit <= MAX_ERASED_AT_ONCE:
        raise InvalidArgument(f"between 1 and {MAX_ERASED_AT_ONCE} rows are erased at once, not {limit}")


def still_active(tenant: TenantId) -> Conflict:
    return Conflict(f"the tenant {tenant!r} is active; disable it first", details={"status": "active"})


def still_running(tenant: TenantId, runs: int) -> Conflict:
    return Conflict(
        f"the tenant {tenant!r} has {runs} runs that are not over; kill them first", details={"open_runs": runs}
    )
