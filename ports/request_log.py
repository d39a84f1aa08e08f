"""RequestLog: what a gateway was asked, by whom, what was decided, what it cost. A record for each request, added to only.

A record holds no text of a prompt or an answer. A tenant may want those kept for some days as well: they come sealed, and
only whoever holds the key reads them. Budgets are not kept here (`ports.budget`): what is lost here costs nobody anything.

Clauses (each has a test in `conformance.request_log`):

* REQ-1  `write` adds records of the caller's tenant, all or none. A record whose id is known changes nothing, so that
         writing again after an unknown outcome is safe.
* REQ-2  `find` gives a record exactly as it was written; one that does not exist, or is another tenant's or namespace's,
         raises `NotFound`.
* REQ-3  `recent` lists the newest first, in pages, each record once, also while others are added; `limit` is at least 1 and
         at most `MAX_PAGE`.
* REQ-4  `find`, `recent` and `counted` need the scope `usage:read`, `content` needs `audit:read`.
* REQ-5  What was denied is in its tenant's audit (`model.deny`, with the request's id) once its record is written, once.
* REQ-6  `content` gives what was sealed with a record, until `kept_until`; afterwards, and where nothing was kept, it
         raises `NotFound`. Each reading is in the audit (`request.read`) before anything is given.
* REQ-7  `counted` counts the requests since a moment, and those of them that were denied, by day (UTC) and model. What they
         have cost is the ledger's to say.
* REQ-8  What was written is there for a log opened anew on the same storage.
"""

import re
import uuid
from collections.abc import Sequence
from datetime import date, datetime
from typing import Final, Protocol

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.ids import uuid_of
from ports.messages import Page
from ports.model import Attempt
from ports.randoms import Randoms

MAX_PAGE: Final = 200
MAX_RECORDS: Final = 1_000
"""That one `write` takes."""
READ: Final = "usage:read"
READ_CONTENT: Final = "audit:read"
DENIED: Final = "model.deny"
CONTENT_READ: Final = "request.read"

_PREFIX: Final = "req"
_VARIANTS: Final = {digit: "89ab"[number % 4] for number, digit in enumerate("0123456789abcdef")}
"""The digit of a UUID that says its variant, with two bits of a random one."""
_RANDOMS: Final = Randoms(10)
_ID: Final = re.compile(rf"{_PREFIX}_[0-9a-f]{{32}}")


class RequestRecord(Struct, frozen=True, kw_only=True, gc=False):
    id: str
    """`new_request_id`: it says when."""
    at: datetime
    namespace: str
    principal: str
    correlation_id: str
    route: str
    stream: bool = False
    model_asked: str
    model: str = ""
    """That served it, and `backend`; empty where none was asked."""
    backend: str = ""
    status: int
    code: str = ""
    """Of the error it was answered with."""
    denied: bool = False
    """By entitlement or policy."""
    decision: str = ""
    reasons: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nanousd: int = 0
    estimated: bool = False
    latency_ms: int = 0
    replayed: bool = False
    """Answered with what another request has paid."""
    joined: bool = False
    kept_until: datetime | None = None
    """Its prompt and answer are kept until then."""


class Written(Struct, frozen=True, kw_only=True, gc=False):
    """A record on its way, with what is kept of its texts: sealed, never in clear."""

    record: RequestRecord
    sealed: bytes | None = None


class Counted(Struct, frozen=True, kw_only=True):
    """Of one day and model."""

    day: date
    model: str
    requests: int
    denied: int


class RequestLog(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes."""

    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        """Returns once denials would survive a crash; of the rest, a crash of the storage may forget the last moments.

        Raises:
            InvalidArgument: more than `MAX_RECORDS`, an id that is not one of ours, or `sealed` without `kept_until`.
        """
        ...

    async def find(self, auth: AuthContext, request: str) -> RequestRecord: ...

    async def recent(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[RequestRecord]: ...

    async def content(self, auth: AuthContext, request: str) -> bytes:
        """As it was sealed."""
        ...

    async def counted(self, auth: AuthContext, *, since: datetime) -> tuple[Counted, ...]:
        """By day, then by model."""
        ...


def new_request_id(at: datetime) -> str:
    """A new id that sorts by time (UUIDv7)."""
    bits = _RANDOMS.take()
    return f"{_PREFIX}_{int(at.timestamp() * 1_000):012x}7{bits[:3]}{_VARIANTS[bits[3]]}{bits[5:]}"


def first_id(at: datetime) -> uuid.UUID:
    """No request of that moment, or a later one, has a smaller one."""
    return uuid.UUID(int=int(at.timestamp() * 1_000) << 80)


def request_uuid(request: str) -> uuid.UUID | None:
    """None for what can't be one."""
    return uuid_of(_PREFIX, request)


def check_records(records: Sequence[Written]) -> None:
    """Raises `InvalidArgument` for what can't be written."""
    if len(records) > MAX_RECORDS:
        raise InvalidArgument(f"at most {MAX_RECORDS} records are written at once, not {len(records)}")
    for written in records:
        if _ID.fullmatch(written.record.id) is None:
            raise InvalidArgument(f"{written.record.id!r} is no request's id: make one with new_request_id")
        if (written.sealed is None) != (written.record.kept_until is None):
            raise InvalidArgument("what is sealed is kept until some time, and nothing else is")
