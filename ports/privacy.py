"""Privacy: what is kept of a person or service erased, what a court wants kept held, and the rest kept for so long only.

A *subject* is a principal of a tenant, in all of its namespaces: the one in whose name runs and requests were made. What is
erased is what was made, asked, remembered and issued in its name, and what the audit says that it did or had done to it.
What others wrote about it in their own runs is theirs.

Clauses (each has a test in `conformance.privacy`):

* PRI-1  Once `erase` is done the subject's runs are gone, with their journals, events, bodies and idempotency keys; so are
         its API keys, the memory that was last written in its name, journaled replies, and what was kept of its prompts and
         answers. Requests and usage still count, and are nobody's (`ERASED`).
* PRI-2  What the audit said of the subject, as who acted or as what was acted on, is gone from it. Numbers and hashes stay
         and the chain holds. Two entries tell of the erasing, `subject.erase` when it begins and `subject.erased` when it
         is done; they name the subject by `erased_name` only.
* PRI-3  A call does a bounded amount of work. Repeated until it is done, whoever repeats it, `erase` comes to an end, also
         after a crash between two calls; the tombstone counts what went in all of them. Asked again afterwards, it looks
         again for what came since.
* PRI-4  What is another subject's stays, equal bodies included, and so does what is another tenant's, and what the audit
         says that a namesake of another tenant did.
* PRI-5  From the first call on the subject is barred from the tenant (`TenantDirectory.standing`, `acting` and `find_key`
         say so, the last also of keys that are issued later), and stays barred when nothing names it any more, until
         somebody puts it as a principal again.
* PRI-6  `erase` of a subject with runs that have not ended raises `Conflict` (`runs_open`), and removes nothing.
* PRI-7  What is held, by itself or with all of its tenant, is not erased: `Conflict` (`legal_hold`), also in the midst of
         an erasing. Nor does upkeep remove it, whatever its age, nor `AuditLog.erase` what the audit says of it, nor
         `Administration.erase` its tenant (`Conflict`, `legal_hold`).
* PRI-8  `hold` is in force until it is released; `holds` lists those in force, the oldest first. A hold that is absent,
         released or another tenant's can't be released: `NotFound`. Asked for again by the same caller with the same
         `request`, it is the same hold, also after a crash; when it was released since, `Conflict` (`hold_released`, with
         its `hold_id`), for nothing is held; with another subject or reason, `Conflict` (`idempotency_key_reused`).
* PRI-9  `retain` says for how many days a tenant keeps a class of data, in place of what it said before, `retention` gives
         it back. Upkeep removes what is older by a day; of usage and the audit it removes what they say, not that they are.
         A rule never keeps anything for longer than the node does.
* PRI-10 Every call needs the scope `admin:platform`, names its tenant, and touches no other. A tenant that is not there
         raises `NotFound`. One whose data may lie where an adapter does not look raises `Conflict`.
* PRI-11 The audit tells of each change once: holds when they are placed and released, rules when they change.
"""

import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, Protocol, TypeAlias, get_args

import msgspec
from msgspec import Struct

from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound
from ports.ids import PrincipalId, TenantId

ERASED: Final = "erased"
"""Whose the requests and the usage of an erased subject are."""
BEGUN: Final = "subject.erase"
DONE: Final = "subject.erased"
EXPORTED: Final = "subject.export"
HELD: Final = "hold.place"
RELEASED: Final = "hold.release"
RETAINED: Final = "retention.set"
EVERYBODY: Final = "*"
"""Whom a hold on all of a tenant is about, in the audit."""

MAX_REASON_CHARS: Final = 500
MAX_SUBJECT_CHARS: Final = 255
MAX_HOLDS: Final = 1_000
"""In force at a time, per tenant."""
MAX_RETENTION_DAYS: Final = 3_650

DataClass: TypeAlias = Literal["runs", "requests", "texts", "usage", "memory", "audit"]
CLASSES: Final[tuple[DataClass, ...]] = get_args(DataClass)
MIN_RETENTION_DAYS: Final[Mapping[DataClass, int]] = {
    "runs": 7, "requests": 7, "texts": 1, "usage": 30, "memory": 1, "audit": 30
}  # fmt: skip
"""Idempotency keys are promised for 7 days; what was spent and done must be known for a month's bill."""


class Counts(Struct, frozen=True, kw_only=True):
    """What went, of all calls of one erasing."""

    runs: int = 0
    """Removed, each with its journal, events, bodies and keys."""
    texts: int = 0
    """Kept prompts and answers that were removed."""
    replies: int = 0
    """Journaled replies and queue messages that were removed."""
    memory: int = 0
    """Items that were removed."""
    keys: int = 0
    """API keys that were removed."""
    requests: int = 0
    """Records of requests that are nobody's now."""
    usage: int = 0
    """Usage events that are nobody's now."""
    audit: int = 0
    """Entries whose content was removed."""


class Erasure(Struct, frozen=True, kw_only=True):
    """A subject's tombstone."""

    name: str
    """What is left of who it was: see `erased_name`."""
    status: Literal["erasing", "erased"]
    begun_at: datetime
    erased_at: datetime | None
    counts: Counts

    @property
    def done(self) -> bool:
        return self.status == "erased"


class Hold(Struct, frozen=True, kw_only=True):
    id: str
    subject: PrincipalId | None
    """None: all of the tenant."""
    reason: str
    placed_by: PrincipalId
    placed_at: datetime


class PrivacyPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes."""

    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        """The next batch. Raises `Conflict`, with code `runs_open` or `legal_hold`."""
        ...

    async def erasures(self, auth: AuthContext, tenant: TenantId, *, limit: int = 200) -> tuple[Erasure, ...]:
        """Those that are not done, then the newest."""
        ...

    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        """`request` makes repeating safe; empty: a hold of its own each time.

        Raises `InvalidArgument` for a reason that says nothing or more than `MAX_REASON_CHARS`, `Conflict`
        (`too_many_holds`) above `MAX_HOLDS`, and (`hold_released`) for a request whose hold was released.
        """
        ...

    async def release(self, auth: AuthContext, tenant: TenantId, hold: str) -> Hold:
        """The hold that was."""
        ...

    async def holds(self, auth: AuthContext, tenant: TenantId) -> tuple[Hold, ...]: ...

    async def retain(self, auth: AuthContext, tenant: TenantId, days: Mapping[DataClass, int | None]) -> None:
        """Classes that are not named stay as they are; None: for as long as the node does.

        Raises `InvalidArgument` for days below `MIN_RETENTION_DAYS` or above `MAX_RETENTION_DAYS`.
        """
        ...

    async def retention(self, auth: AuthContext, tenant: TenantId) -> dict[DataClass, int]:
        """The tenant's own rules."""
        ...


def erased_name(tenant: TenantId, subject: str) -> str:
    """What a subject is called after its erasing: a digest, so that whoever knows whom to look for finds the tombstone."""
    return f"{ERASED}:{hashlib.sha256(f'{tenant} {subject}'.encode()).hexdigest()}"


def requested_hold(auth: AuthContext, tenant: TenantId, request: str) -> uuid.UUID:
    """The id of the hold that a caller places by this request: a repeat has the same."""
    whose = msgspec.json.encode((tenant, auth.actor_tenant, auth.principal, request))
    return uuid.UUID(bytes=hashlib.sha256(whose).digest()[:16])


def check_same_hold(placed: Hold, subject: PrincipalId | None, reason: str) -> None:
    if (placed.subject, placed.reason) != (subject, reason):
        raise Conflict(
            "this request's key placed another hold; send a key of its own with each",
            code="idempotency_key_reused",
            details={"hold_id": placed.id},
        )


def check_subject(subject: str) -> None:
    """Raises `InvalidArgument`."""
    if not 0 < len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable():
        raise InvalidArgument(
            f"a subject is a principal's name, 1 to {MAX_SUBJECT_CHARS} printable characters",
            details={"path": "subject"},
        )
    if subject == ERASED or subject.startswith(f"{ERASED}:"):
        raise InvalidArgument(
            f"{subject!r} is nobody: it stands for those who were erased", details={"path": "subject"}
        )


def check_hold(subject: str | None, reason: str) -> None:
    """Raises `InvalidArgument`."""
    if subject is not None:
        check_subject(subject)
    if not reason.strip() or len(reason) > MAX_REASON_CHARS or not reason.isprintable():
        raise InvalidArgument(
            f"a hold needs a reason of 1 to {MAX_REASON_CHARS} printable characters", details={"path": "reason"}
        )


def check_days(days: Mapping[DataClass, int | None]) -> None:
    """Raises `InvalidArgument`."""
    for name, kept in days.items():
        least = MIN_RETENTION_DAYS.get(name)
        if least is None:
            raise InvalidArgument(
                f"{name!r} is no class of data; there are {', '.join(CLASSES)}", details={"path": name}
            )
        if kept is not None and not least <= kept <= MAX_RETENTION_DAYS:
            raise InvalidArgument(
                f"{name} are kept for {least} to {MAX_RETENTION_DAYS} days, not {kept}", details={"path": name}
            )


def changes(before: Mapping[DataClass, int], days: Mapping[DataClass, int | None]) -> str:
    """What of the rules is another now, as the audit says it; empty: nothing."""
    told = ((name, before.get(name), days[name]) for name in CLASSES if name in days)
    return ", ".join(f"{name} {_days(old)} -> {_days(new)}" for name, old, new in told if old != new)


def _days(kept: int | None) -> str:
    return "node" if kept is None else str(kept)


def held(what: str) -> Conflict:
    return Conflict(f"{what} is held; see the tenant's legal holds for why", code="legal_hold")


def runs_open(subject: str, runs: int) -> Conflict:
    return Conflict(
        f"{runs} runs of {subject!r} have not ended: cancel them, or wait for them",
        code="runs_open",
        details={"open_runs": runs},
    )


def hold_released(hold: str) -> Conflict:
    return Conflict(
        f"this request placed {hold}, which was released since: nothing is held by it; send a key of its own",
        code="hold_released",
        details={"hold_id": hold},
    )


def too_many_holds() -> Conflict:
    return Conflict(f"{MAX_HOLDS} holds are in force; release some", code="too_many_holds")


def elsewhere(tenant: str) -> Conflict:
    return Conflict(
        f"{tenant} lives, or lived, in a home of its own, where nothing of this is known; all that is kept of it can be "
        "exported and removed with the tenant only"
    )


def no_hold(hold: str) -> NotFound:
    return NotFound(f"there is no hold {hold[:64]!r} in force")


def no_tenant(tenant: str) -> NotFound:
    return NotFound(f"there is no tenant {tenant[:64]!r}")
