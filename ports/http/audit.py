"""The audit over HTTP, the same on every surface: what is asked, what is answered, and how a denial gets into it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from msgspec import Struct

from ports.audit import MAX_PAGE, AuditLog, Link, Note, Outcome, Wanted
from ports.audit_rules import moment
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import InvalidArgument, PermissionDenied
from ports.http.edge import Denied
from ports.http.openapi import Parameter
from ports.ids import PrincipalId, TenantId
from ports.messages import Page
from ports.recent import Recent

OWN: Final = "/v1/audit"
DEFAULT_PAGE: Final = 50
FILTERS: Final = ("action", "principal", "subject", "outcome", "since", "until")
QUERY: Final = ("limit", "cursor", *FILTERS)
DENIED: Final = "route.deny"
ACTS: Final = "acting.use"
ACTING_NOTED_EVERY: Final = timedelta(minutes=10)
_MAX_NOTED: Final = 4_096

DESCRIPTION: Final = (
    "Each entry has a number without gaps and a hash over the one before it, so that whatever is changed later shows. "
    "`entry` is null where what it said was erased."
)
_MOMENT: Final[Mapping[str, str]] = {"type": "string", "format": "date-time"}
PARAMETERS: Final = (
    Parameter(
        name="limit",
        description="Items on a page.",
        schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    ),
    Parameter(name="cursor", description="`next_cursor` of the page before."),
    Parameter(name="action", description="Such as `key.revoke`, or `key.*` for all that begin so."),
    Parameter(name="principal", description="Who did it."),
    Parameter(name="subject", description="What it was done to."),
    Parameter(name="outcome", description="Only these.", schema={"type": "string", "enum": ["done", "denied"]}),
    Parameter(name="since", description="From this moment on.", schema=dict(_MOMENT)),
    Parameter(name="until", description="Before this moment.", schema=dict(_MOMENT)),
)


class EntryPage(Struct, frozen=True, kw_only=True):
    items: tuple[Link, ...]
    next_cursor: str | None
    tenant_id: str
    """Whose audit it is."""
    correlation_id: str


def entry_page(page: Page[Link], tenant: str, auth: AuthContext) -> EntryPage:
    return EntryPage(
        items=page.items, next_cursor=page.next_cursor, tenant_id=tenant, correlation_id=auth.trace.correlation_id
    )


def wanted_of(sent: Mapping[str, str]) -> Wanted:
    """Raises `InvalidArgument` for what can't be asked."""
    return Wanted(
        action=sent.get("action"),
        principal=sent.get("principal"),
        subject=sent.get("subject"),
        outcome=_outcome(sent.get("outcome")),
        since=moment("since", sent.get("since")),
        until=moment("until", sent.get("until")),
    )


def denials(log: AuditLog) -> Denied:
    """Notes who may not. The caller hears of the denial once the audit has it; if it can't have it, of that."""

    async def denied(auth: AuthContext, template: str, error: PermissionDenied) -> None:
        needed = error.details.get("required_scope")
        detail = error.code if needed is None else f"{error.code}: {needed}"
        await log.note(auth, Note(action=DENIED, subject=template, outcome="denied", detail=detail))

    return denied


class ActingNotes:
    """Notes who acts for another tenant, in that tenant's audit: once, and again after a while. Before it is let in."""

    def __init__(self, log: AuditLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._noted: Recent[tuple[TenantId, PrincipalId], bool] = Recent(_MAX_NOTED)

    async def acted(self, auth: AuthContext) -> None:
        who, now = (auth.tenant, auth.principal), self._clock.monotonic()
        if self._noted.get(who, now) is not None:
            return
        await self._log.note(auth, Note(action=ACTS, subject=auth.tenant))
        self._noted.put(who, True, until=now + ACTING_NOTED_EVERY.total_seconds())


def _outcome(text: str | None) -> Outcome | None:
    match text:
        case None | "done" | "denied":
            return text
        case _:
            raise InvalidArgument("outcome is done or denied", details={"path": "outcome"})
