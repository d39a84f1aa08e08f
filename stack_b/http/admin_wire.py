"""What the administration of the gateway's configuration says on the wire."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from ports.context import AuthContext
from ports.gateway_configuration import MAX_COMMENT_CHARS, Summary, Version
from ports.ids import PrincipalId, TenantId
from ports.messages import Json, Page
from stack_b.administration import NOTHING, Plan
from stack_b.diagnosis import Change, Diagnostic

Comment = Annotated[str, Meta(max_length=MAX_COMMENT_CHARS, description="Why, for those who come later.")]


class PutBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    document: dict[str, Json]
    """`backends`, `routing`, `prices`, `policies`: what a gateway's file holds. Secrets are references, never values."""
    comment: Comment = ""


class ActivateBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    comment: Comment = ""


class VersionView(Struct, frozen=True, kw_only=True):
    version: int
    digest: str
    """Equal for documents that mean the same."""
    comment: str
    restores: int | None
    """The version that this one says again."""
    created_at: datetime | None
    created_by: PrincipalId | None
    created_by_tenant: TenantId | None


class ConfigurationView(VersionView, frozen=True, kw_only=True, tag_field="kind", tag="configuration"):
    """Version 0 is what is in force while nothing is stored: an empty document."""

    document: Json
    newest: bool
    """Gateways follow the newest within seconds, unless they were given a file."""
    overridden_by: str | None
    """Set where this node's gateway follows a file, which goes before what is stored; what to do about it."""
    tenant_id: TenantId
    correlation_id: str


class HistoryPage(Struct, frozen=True, kw_only=True):
    items: tuple[VersionView, ...]
    next_cursor: str | None
    tenant_id: TenantId
    correlation_id: str


class PlanView(Struct, frozen=True, kw_only=True, tag_field="kind", tag="plan"):
    """What a document would do. Nothing has changed."""

    dry_run: bool = True
    usable: bool
    digest: str
    current_version: int
    diagnostics: tuple[Diagnostic, ...]
    """All of them; one `error` is enough for `usable` to be false."""
    diff: tuple[Change, ...]
    """From the newest version."""
    tenant_id: TenantId
    correlation_id: str


def version_view(found: Summary) -> VersionView:
    return VersionView(**_said(found))


def configuration_view(
    found: Version | None, auth: AuthContext, *, newest: bool, overridden_by: str | None
) -> ConfigurationView:
    said = _NOTHING if found is None else _said(found)
    return ConfigurationView(
        **said,
        document=NOTHING if found is None else found.document,
        newest=newest,
        overridden_by=overridden_by,
        tenant_id=auth.tenant,
        correlation_id=auth.trace.correlation_id,
    )


def history_page(page: Page[Summary], auth: AuthContext) -> HistoryPage:
    return HistoryPage(
        items=tuple(version_view(one) for one in page.items),
        next_cursor=page.next_cursor,
        tenant_id=auth.tenant,
        correlation_id=auth.trace.correlation_id,
    )


def plan_view(plan: Plan, auth: AuthContext) -> PlanView:
    return PlanView(
        usable=plan.usable,
        digest=plan.digest,
        current_version=plan.current,
        diagnostics=plan.diagnostics,
        diff=plan.changes,
        tenant_id=auth.tenant,
        correlation_id=auth.trace.correlation_id,
    )


def _said(found: Summary) -> dict[str, Json]:
    return {
        "version": found.version,
        "digest": found.digest,
        "comment": found.comment,
        "restores": found.restores,
        "created_at": found.created_at,
        "created_by": found.principal,
        "created_by_tenant": found.tenant,
    }


_NOTHING: dict[str, Json] = {
    "version": 0, "digest": "", "comment": "", "restores": None, "created_at": None, "created_by": None,
    "created_by_tenant": None,
}  # fmt: skip
