"""Privacy: what is kept of a person or service, having it erased, and what must be kept because a court says so.

A *subject* is a principal of the caller's tenant, in all of its namespaces: the one in whose name runs and requests were made.
What agents have put into a tenant's memory is the tenant's, and so is what others wrote about the subject.

Clauses (each has a test in `conformance.privacy`):

* PRI-1  `export` gives what is kept of the subject, in pages, each item once: runs with their journals and events, requests
         to models, usage, keys without their secrets, and entries of the audit. Nothing of anybody else's.
* PRI-2  Once `erase` has given no cursor any more, the subject's runs are gone, with their journals, events, bodies and
         idempotency keys; so are its keys, and what was kept of its prompts and answers. Requests and usage still count, and
         are nobody's (`ERASED`).
* PRI-3  `erase` of a subject with runs that have not ended raises `Conflict` (`runs_open`), and removes nothing.
* PRI-4  A subject that is held, by itself or with all of its tenant, is not erased: `Conflict` (`legal_hold`). Neither does
         upkeep remove its runs, its requests or their texts, whatever their age.
* PRI-5  `hold` is in force until it is lifted; `holds` lists those in force. A hold that is absent, lifted or another
         tenant's can't be lifted: `NotFound`.
* PRI-6  The audit tells of each: an export and an erasure once, when they begin, holds when they are placed and lifted. Its
         entries about the subject stay: they are what proves that the rest is gone.
* PRI-7  All need the scope `admin:tenant`, and see the caller's tenant only.
* PRI-8  A call does a bounded amount of work. Going on from a cursor comes to an end, also after a crash between two calls.
"""

from datetime import datetime
from typing import Final, Literal, Protocol, TypeAlias

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.ids import PrincipalId
from ports.messages import Json, Page

SCOPE: Final = "admin:tenant"
ERASED: Final = "erased"
"""Whose the requests and the usage of an erased subject are."""
EXPORTED: Final = "subject.export"
ERASURE: Final = "subject.erase"
HELD: Final = "hold.place"
LIFTED: Final = "hold.lift"
MAX_REASON_CHARS: Final = 500
MAX_HOLDS: Final = 1_000
"""In force at a time, per tenant."""

Kind: TypeAlias = Literal["run", "request", "usage", "key", "audit"]
KINDS: Final[tuple[Kind, ...]] = ("run", "request", "usage", "key", "audit")
"""In the order in which they are exported."""


class Item(Struct, frozen=True, kw_only=True):
    """One thing that is kept of a subject."""

    kind: Kind
    id: str
    data: dict[str, Json]
    """Of a run: `run`, `steps` and `events`. Else its members by name."""


class Erased(Struct, frozen=True, kw_only=True):
    """What one call has done."""

    runs: int = 0
    """Removed."""
    texts: int = 0
    """Prompts and answers that were removed."""
    keys: int = 0
    """Removed."""
    records: int = 0
    """Requests and usage events that are nobody's now."""
    cursor: str | None = None
    """Where to go on; None: all is done."""


class Hold(Struct, frozen=True, kw_only=True):
    id: str
    subject: PrincipalId | None
    """None: all of the tenant."""
    reason: str
    placed_by: PrincipalId
    placed_at: datetime


class PrivacyPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently."""

    async def export(self, auth: AuthContext, subject: PrincipalId, *, cursor: str | None = None) -> Page[Item]:
        """A page may be empty and have a next one."""
        ...

    async def erase(self, auth: AuthContext, subject: PrincipalId, *, cursor: str | None = None) -> Erased:
        """Raises `Conflict`, with code `runs_open` or `legal_hold`."""
        ...

    async def hold(self, auth: AuthContext, subject: PrincipalId | None, *, reason: str) -> Hold:
        """Raises `InvalidArgument` for a reason that says nothing or more than `MAX_REASON_CHARS`, `Conflict` (`too_many_holds`)
        above `MAX_HOLDS`."""
        ...

    async def lift(self, auth: AuthContext, hold: str) -> None: ...

    async def holds(self, auth: AuthContext) -> tuple[Hold, ...]:
        """The oldest first."""
        ...


def check_reason(reason: str) -> None:
    """Raises `InvalidArgument`."""
    if not reason.strip() or len(reason) > MAX_REASON_CHARS:
        raise InvalidArgument(f"a hold needs a reason of 1 to {MAX_REASON_CHARS} characters")


def everybody(subject: str | None) -> str:
    """Whom a hold is about, in the audit."""
    return "*" if subject is None else subject
