"""What administration works on, over HTTP and from the command line."""

from msgspec import Struct

from deploy.administration.offboarding import Exporter
from deploy.administration.privacy import SubjectExporter
from ports.administration import Administration
from ports.audit import AuditLog
from ports.budget import BudgetLedger
from ports.privacy import PrivacyPort
from ports.request_log import RequestLog
from ports.run_state import RunStatePort
from ports.tenant import TenantDirectory


class Platform(Struct, frozen=True, kw_only=True):
    tenants: TenantDirectory
    runs: RunStatePort
    budget: BudgetLedger
    requests: RequestLog
    administration: Administration
    privacy: PrivacyPort
    audit: AuditLog
    export: Exporter
    export_subject: SubjectExporter
