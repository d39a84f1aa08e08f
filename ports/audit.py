"""AuditLog: what was done and what was denied, in one chain per tenant that shows whatever was changed in it.

Who changes something notes it in the transaction that changes it; that is the promise of the port that changes. This port
is for what changes nothing of its own (a denial, a look across tenants), and for reading, checking and erasing.

An entry has a number and a hash over the entry before it, see `audit_rules`. The chain alone shows what was changed in its
middle; that its end was cut off, or all of it written anew, is shown by heads that somebody outside the storage has signed.

Clauses (each has a test in `conformance.audit`):

* AUD-1  `note` adds an entry that says what it was given, who did it and when. Numbers of a tenant run 1, 2, 3 … without
         gaps, whoever adds at the same time.
* AUD-2  The hash of each entry is that of `audit_rules.link` over the hash before it, its number and what it says.
* AUD-3  A tenant's chain tells nothing of another's: neither in its entries, nor in its numbers.
* AUD-4  `query` and `chain` need the scope `audit:read`, and for another tenant than the caller's `admin:platform`. A
         look of another tenant's principal, also of one that acts for this one, is itself in that audit (`audit.read`), by
         the time it is answered.
* AUD-5  `query` gives entries that match all that is asked for, newest first. One that is added meanwhile changes nothing
         on the pages behind a cursor.
* AUD-6  `chain` gives a tenant's links from a number on, oldest first and without gaps, those of erased entries included.
* AUD-7  `erase` takes what entries said: of a stretch, or of one principal in it, as who acted or what was acted on. Their
         numbers and hashes stay, and an entry (`audit.erase`) says which went; neither such an entry nor another that tells
         of erasing is ever erased, nor what is held (see `ports.privacy`). It needs `admin:platform`, and gives how many
         went.
* AUD-8  `heads` gives the newest number and hash of every tenant, and needs the scope `audit:sign`.
* AUD-9  What is longer than its limit, or no text that can be stored, raises `InvalidArgument` and adds nothing.
* AUD-10 What was noted is there for a log opened anew on the same storage.
* AUD-11 A log may read storages beside its own, and a tenant has a chain of its own in each: `homes` names them, `at` gives
         the log of one, and raises `NotFound` for any other name. `query` gives entries of all of them, and each link and
         head says where it is from.
"""

from datetime import datetime
from typing import Final, Literal, Protocol, TypeAlias

from msgspec import Struct

from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import InvalidArgument, NotFound
from ports.ids import PrincipalId, TenantId
from ports.messages import Page

READ: Final = "audit:read"
SIGN: Final = "audit:sign"
"""Of the node's own processes. No token ever carries it."""

MAX_PAGE: Final = 200
MAX_STRETCH: Final = 5_000
"""Links of one `chain`, heads of one `heads`."""
MAX_TEXT_CHARS: Final = 500
MAX_DETAIL_CHARS: Final = 2_000

LOOKED: Final = "audit.read"
ERASED: Final = "audit.erase"
KEPT: Final = frozenset({ERASED, "subject.erase", "subject.erased", "tenant.erase", "tenant.erased"})
"""What tells of erasing, and is never erased itself."""

Outcome: TypeAlias = Literal["done", "denied"]


class Note(Struct, frozen=True, kw_only=True):
    action: str
    """`thing.verb`, such as `key.revoke`."""
    subject: str
    """What it was done to."""
    outcome: Outcome = "done"
    detail: str = ""
    """Why it was denied, or what else has to be known of it; never a payload."""


class Entry(Note, frozen=True, kw_only=True):
    id: str
    at: datetime
    tenant: TenantId
    """In whose audit it is."""
    namespace: str
    actor_tenant: TenantId
    """Whose principal it was: another's than the audit's where the platform acted."""
    principal: PrincipalId
    correlation_id: str


class Link(Struct, frozen=True, kw_only=True, omit_defaults=True):
    seq: int
    hash: str
    """Hexadecimal."""
    entry: Entry | None
    """None: erased."""
    home: str = ""
    """The storage that has it; empty: the log's own."""


class Head(Struct, frozen=True, kw_only=True, omit_defaults=True):
    tenant: TenantId
    seq: int
    hash: str
    home: str = ""


class Wanted(Struct, frozen=True, kw_only=True):
    """What `query` looks for; None and empty are no condition."""

    action: str | None = None
    """As it is, or the beginning of it before a `*`: `key.*`."""
    principal: str | None = None
    subject: str | None = None
    outcome: Outcome | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Before this."""


class AuditLog(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes."""

    @property
    def homes(self) -> tuple[str, ...]:
        """Storages that are read beside its own; most logs have none."""
        ...

    def at(self, home: str) -> "AuditLog":
        """The log of one of `homes`, alone."""
        ...

    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        """In the audit of `tenant`, or of the caller's own. Returns once it would survive a crash of this process.

        Of another tenant only for whoever holds `admin:platform`.
        """
        ...

    async def query(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, limit: int, cursor: str | None = None
    ) -> Page[Link]: ...

    async def chain(self, auth: AuthContext, tenant: TenantId, *, after: int, limit: int) -> tuple[Link, ...]:
        """The links behind number `after`, at most `limit` of them; none when there are no more."""
        ...

    async def head(self, auth: AuthContext, tenant: TenantId) -> Head:
        """Number 0 where there is nothing. Needs what `chain` needs, and is not noted."""
        ...

    async def heads(self, auth: AuthContext, *, after: TenantId | None = None, limit: int) -> tuple[Head, ...]:
        """By tenant, those behind `after`."""
        ...

    async def erase(
        self, auth: AuthContext, tenant: TenantId, *, first: int, last: int, principal: PrincipalId | None = None
    ) -> int: ...


def require_reader(auth: AuthContext, tenant: TenantId) -> None:
    """Raise `PermissionDenied` unless the caller may look into the audit of `tenant`."""
    auth.require(READ if auth.tenant == tenant else ADMIN_PLATFORM)


def check_note(note: Note) -> None:
    """Raise `InvalidArgument` for what can't be kept."""
    for name, text, most in (
        ("an action", note.action, MAX_TEXT_CHARS),
        ("a subject", note.subject, MAX_TEXT_CHARS),
        ("a detail", note.detail, MAX_DETAIL_CHARS),
    ):
        if len(text) > most or "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise InvalidArgument(f"{name} of the audit has at most {most} characters, no NUL and no lone surrogate")


def no_home(home: str) -> NotFound:
    return NotFound(f"this audit reads no home {home[:64]!r}")


def looked(tenant: TenantId) -> Note:
    """What a look into another tenant's audit leaves there."""
    return Note(action=LOOKED, subject=tenant)
