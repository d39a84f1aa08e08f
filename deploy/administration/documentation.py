"""What the OpenAPI document of the admin surface says about tenants, budgets, usage and runs."""

from collections.abc import Mapping
from typing import Final, get_args

from deploy.administration import wire
from deploy.administration.offboarding import ERASE_AT_ONCE
from deploy.administration.routes import (
    BUDGET,
    BUDGETS,
    DEFAULT_DAYS,
    DEFAULT_PAGE,
    ERASE_BATCHES_PER_REQUEST,
    KILL,
    MAX_DAYS,
    RUNS,
    TENANT_TEMPLATE,
    TENANTS,
    USAGE,
    template,
)
from ports.administration import MAX_REASON_CHARS
from ports.http.openapi import Operation, Parameter
from ports.messages import Json
from ports.run_state import MAX_PAGE, RunStatus

LIMITS: Final[Mapping[str, int]] = {
    "max_page_size": MAX_PAGE,
    "default_page_size": DEFAULT_PAGE,
    "max_usage_days": MAX_DAYS,
    "max_kill_reason": MAX_REASON_CHARS,
    "max_rows_removed_per_deletion_request": ERASE_AT_ONCE * ERASE_BATCHES_PER_REQUEST,
}


def _number(default: int, most: int) -> dict[str, Json]:
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}


_PAGES: Final = (
    Parameter(name="limit", description="Items on a page.", schema=_number(DEFAULT_PAGE, MAX_PAGE)),
    Parameter(name="cursor", description="`next_cursor` of the page before."),
)
_SCOPE_ID: Final = Parameter(
    name="scope_id",
    description="Whose window to show, of budgets that each key, agent, session or tier has for itself.",
)

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("GET", TENANTS): Operation(
        summary="All tenants, by id", tag="tenants", response=wire.TenantPage, parameters=_PAGES
    ),
    ("POST", TENANTS): Operation(
        summary="Make a tenant",
        description="An id that is taken, or was and its tenant erased, is a `conflict`: repeating makes no second one.",
        tag="tenants",
        request=wire.CreateTenant,
        response=wire.TenantView,
        status=201,
        codes=("conflict",),
    ),
    ("GET", TENANT_TEMPLATE): Operation(
        summary="One tenant", tag="tenants", response=wire.TenantView, codes=("not_found",)
    ),
    ("PATCH", TENANT_TEMPLATE): Operation(
        summary="Change quotas and entitlements",
        description=(
            "Of the version that `If-Match` names. `conflict`: somebody else was first; `details.current` is the version "
            "by now. What is so already is no change."
        ),
        tag="tenants",
        request=wire.PatchTenant,
        response=wire.TenantView,
        parameters=(
            Parameter(
                name="If-Match",
                description='The `ETag` of what you changed, such as `"7"`; `*` for whatever is there.',
                required=True,
                where="header",
            ),
        ),
        codes=("not_found", "conflict"),
    ),
    ("POST", TENANT_TEMPLATE + ":disable"): Operation(
        summary="Refuse its keys and tokens within 5 s", tag="tenants", response=wire.TenantView, codes=("not_found",)
    ),
    ("POST", TENANT_TEMPLATE + ":enable"): Operation(
        summary="Serve it again", tag="tenants", response=wire.TenantView, codes=("not_found",)
    ),
    ("DELETE", TENANT_TEMPLATE): Operation(
        summary="Export a disabled tenant, and remove all of it for good",
        description=(
            "Gated: the tenant is disabled, none of its runs is open (`conflict` otherwise), and `confirm` repeats its id. "
            "The first request writes everything to a file on the node; each removes rows in bounded batches, and answers "
            "202 with `deleting` while there are more: send it again to go on. The audit stays; the id is not used again."
        ),
        tag="tenants",
        response=wire.Deletion,
        parameters=(Parameter(name="confirm", description="The tenant's id once more.", required=True),),
        codes=("not_found", "conflict"),
    ),
    ("GET", template(BUDGETS)): Operation(
        summary="What it may spend, and what of it is spent, held and left",
        tag="budgets",
        response=wire.BudgetList,
        parameters=(_SCOPE_ID,),
        codes=("not_found",),
    ),
    ("GET", template(BUDGET)): Operation(
        summary="One budget", tag="budgets", response=wire.BudgetAnswer, parameters=(_SCOPE_ID,), codes=("not_found",)
    ),
    ("PUT", template(BUDGET)): Operation(
        summary="Set a budget; its windows stay",
        tag="budgets",
        request=wire.PutBudget,
        response=wire.BudgetAnswer,
        codes=("not_found",),
    ),
    ("DELETE", template(BUDGET)): Operation(
        summary="Remove a budget", tag="budgets", response=wire.Removed, codes=("not_found",)
    ),
    ("GET", template(USAGE)): Operation(
        summary="What was used, by day and model, or by day, model and agent",
        tag="usage",
        response=wire.UsageReport,
        parameters=(
            Parameter(name="days", description="Today and the days before it.", schema=_number(DEFAULT_DAYS, MAX_DAYS)),
            Parameter(name="by_agent", description="Tell agents apart.", schema={"type": "boolean", "default": False}),
        ),
        codes=("not_found",),
    ),
    ("GET", RUNS): Operation(
        summary="Runs of one tenant, newest first, without what they were about",
        tag="runs",
        response=wire.RunPage,
        parameters=(
            Parameter(name="tenant_id", description="Whose.", required=True),
            Parameter(name="namespace", description="`default` unless named."),
            Parameter(name="status", description="Only those.", schema={"enum": list(get_args(RunStatus))}),
            Parameter(name="agent_id", description="Only those of this agent."),
            *_PAGES,
        ),
        codes=("not_found",),
    ),
    ("POST", KILL): Operation(
        summary="End a run at once, whoever holds it",
        description="Its worker is not waited for: what it still does is not recorded. One that is over stays as it is.",
        tag="runs",
        request=wire.KillRun,
        response=wire.RunAnswer,
        codes=("not_found",),
    ),
}
