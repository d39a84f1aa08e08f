"""ReplyJournal: what came of a model call, kept under the key of its step, so that the call is paid once.

Whoever is about to make the call opens its entry and thereby holds it, under a lease. The holder closes the entry with an
outcome before it tells anybody; from then on the outcome answers everyone who asks. An outcome is JSON that only the
gateway reads: a reply, or an error that asking again would not change.

Clauses (each has a test in `conformance.reply_journal`):

* RPL-1  Of any number of callers who open a key at the same time exactly one wins (`Won`); the others find it `Busy`, for
         as long as the winner's lease lasts.
* RPL-2  After `complete`, `open` with the same digest gives the outcome (`Done`) exactly as it was written, of any size.
         Completing again with the same ticket changes nothing.
* RPL-3  `open` with another digest raises `Conflict` (`idempotency_key_reused`) and changes nothing.
* RPL-4  An entry whose lease ended without an outcome is won by the next `open`; `possible_duplicate` says that the call
         may have been made before. Until somebody does, its holder may still extend and complete it.
* RPL-5  `extend` lets the lease end that much later than now.
* RPL-6  `abandon` ends the lease at once. When the call can't have been made (`maybe_made` is false, and nobody held the
         entry before), it is as if there had never been one.
* RPL-7  Whoever was overtaken, or has abandoned, holds nothing: `extend`, `complete` and `abandon` with that ticket raise
         `Conflict` (`fenced`) and change nothing. Nor can a completed entry be extended or abandoned.
* RPL-8  `cancel` says whether the key is held; if it is, the holder's next `extend` says so. A later holder isn't told.
* RPL-9  A key means another entry in another tenant, and in another namespace; a ticket is worth nothing there.
* RPL-10 An entry is forgotten after it was completed, or last opened: it is as if there had never been one. That is
         `RETENTION` later, or as much sooner as its last opener said with `keep`.
* RPL-11 What was opened and completed is there for a journal opened anew on the same storage.
"""

from datetime import datetime, timedelta
from typing import Final, Protocol, TypeAlias

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.messages import Json

RETENTION: Final = timedelta(days=7)
"""As long as an idempotency key answers: by then a run has either recorded its step or will not come back for it."""


def check_keep(keep: timedelta) -> None:
    """Raises `InvalidArgument` when entries can't be kept for so long."""
    if not timedelta(0) < keep <= RETENTION:
        raise InvalidArgument(f"an entry is kept for more than nothing and at most {RETENTION.days} days, not {keep}")


class Ticket(Struct, frozen=True, kw_only=True):
    """The right to close an entry, for as long as nobody else has won it."""

    key: str
    lease: str


class Won(Struct, frozen=True, kw_only=True):
    """The caller makes the call."""

    ticket: Ticket
    possible_duplicate: bool = False


class Busy(Struct, frozen=True, kw_only=True):
    """Somebody else is making the call, at least until `lease_until` unless it ends sooner."""

    lease_until: datetime


class Done(Struct, frozen=True, kw_only=True):
    """The call was made."""

    outcome: Json


Opened: TypeAlias = Won | Busy | Done


class ReplyJournal(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes."""

    async def open(
        self, auth: AuthContext, key: str, digest: str, *, lease: timedelta, keep: timedelta = RETENTION
    ) -> Opened:
        """`digest` stands for the whole request.

        Raises:
            Conflict: `idempotency_key_reused`.
            InvalidArgument: nothing, or more than `RETENTION`, as `keep`.
        """
        ...

    async def extend(self, auth: AuthContext, ticket: Ticket, *, lease: timedelta) -> bool:
        """Whether the call shall be cancelled. Raises `Conflict` (`fenced`)."""
        ...

    async def complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        """Returns only once the outcome is durable. Raises `Conflict` (`fenced`)."""
        ...

    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        """Raises `Conflict` (`fenced`)."""
        ...

    async def cancel(self, auth: AuthContext, key: str) -> bool: ...
