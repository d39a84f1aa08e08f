"""What administration works on, over HTTP and from the command line."""

from msgspec import Struct

from deploy.administration.offboarding import Exporter
from ports.administration import Administration
from ports.budget import BudgetLedger
from ports.request_log import RequestLog
from ports.run_state import RunStatePort
from ports.tenant import TenantDirectory


class Platform(Struct, frozen=True, kw_only=True):
    tenants: TenantDirectory
    runs: RunStatePort
    budget: BudgetLedger
    requests: RequestLog
    administration: Administration
    export: Exporter
