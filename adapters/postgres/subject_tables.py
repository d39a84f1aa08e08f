"""Whose a row is: which of a tenant's tables have rows of a principal, and how to tell. One in neither list fails a test.

The names are those of our own catalogue; `$1` is the tenant and `$2` the subject.
"""

from collections.abc import Mapping
from typing import Final

_RUNS: Final = "SELECT r.id FROM runs r WHERE r.tenant_id = $1 AND r.requester ->> 'principal' = $2"
_BODIES: Final = f"SELECT b.sha256 FROM blob_refs b WHERE b.tenant_id = $1 AND b.run_id IN ({_RUNS})"  # noqa: S608 - nothing of a caller's

OF_A_SUBJECT: Final[Mapping[str, str]] = {
    "api_keys": "x.principal = $2",
    "audit_log": "x.subject = $2 OR x.principal = $2 AND x.actor_tenant = ao_actor($1, $2)",
    "blob_refs": f"x.run_id IN ({_RUNS})",
    "blobs": f"x.sha256 IN ({_BODIES})",
    "idempotency": "x.principal = $2",
    "memory_items": "x.principal = $2",
    "principals": "x.id = $2",
    "queue_messages": "x.requester ->> 'principal' = $2",
    "request_contents": "x.principal = $2",
    "request_records": "x.principal = $2",
    "run_events": f"x.run_id IN ({_RUNS})",
    "runs": "x.requester ->> 'principal' = $2",
    "steps": f"x.run_id IN ({_RUNS})",
    "usage_events": "x.principal = $2",
}
"""What an export of a subject has: in the export of its tenant the same, with everybody's rows."""

NOT_A_SUBJECTS: Final[Mapping[str, str]] = {
    "acting_principals": "services of other tenants that may act for this one",
    "agents": "made for the tenant; an agent's spec is no one's record",
    "audit_chain": "hashes and numbers, which stay when entries go",
    "audit_heads": "hashes and numbers",
    "budget_hold_windows": "sums",
    "budget_holds": "sums",
    "budget_windows": "sums",
    "budgets": "limits",
    "legal_holds": "the platform's and its lawyers'; erased with the subject",
    "memory_words": "an index of memory_items, which goes with them",
    "model_replies": "sealed copies of answers, kept for retries for 7 days at most; erased with the subject",
    "queue_turns": "sums",
    "retention_rules": "the tenant's",
    "run_backlogs": "sums",
    "run_rates": "sums",
    "run_slots": "sums",
    "subject_tombstones": "what is left when all else is gone",
    "tenants": "the tenant's",
}
"""Which have none, or none that is exported, and why."""
