"""The routes of the part about tenants, with their scope, and the limits that are published."""

from typing import Final

from ports.context import ADMIN_PLATFORM
from ports.http.routes import Route

TENANTS: Final = "/v1/admin/tenants"
TENANT_TEMPLATE: Final = TENANTS + "/{tenant_id}"
TENANT: Final = TENANTS + "/{tenant_id:str}"
BUDGETS: Final = TENANT + "/budgets"
BUDGET: Final = BUDGETS + "/{budget_id:str}"
USAGE: Final = TENANT + "/usage"
RUNS: Final = "/v1/admin/runs"
KILL: Final = RUNS + "/{run_id}:kill"

DEFAULT_PAGE: Final = 50
DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 366
ERASE_BATCHES_PER_REQUEST: Final = 10
"""Of a deletion over HTTP: it is asked for again until it is done."""


def template(path: str) -> str:
    return path.replace(":str}", "}")


ROUTES: Final = (
    Route(method="GET", template=TENANTS, access=ADMIN_PLATFORM, query=("limit", "cursor")),
    Route(method="POST", template=TENANTS, access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=TENANT_TEMPLATE, access=ADMIN_PLATFORM, query=()),
    Route(method="PATCH", template=TENANT_TEMPLATE, access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="DELETE", template=TENANT_TEMPLATE, access=ADMIN_PLATFORM, mutation=True, query=("confirm",)),
    Route(method="POST", template=TENANT_TEMPLATE + ":disable", access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="POST", template=TENANT_TEMPLATE + ":enable", access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=template(BUDGETS), access=ADMIN_PLATFORM, query=("scope_id",)),
    Route(method="GET", template=template(BUDGET), access=ADMIN_PLATFORM, query=("scope_id",)),
    Route(method="PUT", template=template(BUDGET), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="DELETE", template=template(BUDGET), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=template(USAGE), access=ADMIN_PLATFORM, query=("days", "by_agent")),
    Route(
        method="GET",
        template=RUNS,
        access=ADMIN_PLATFORM,
        query=("tenant_id", "namespace", "status", "agent_id", "limit", "cursor"),
    ),
    Route(method="POST", template=KILL, access=ADMIN_PLATFORM, mutation=True, query=()),
)
