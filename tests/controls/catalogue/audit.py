"""The audit, before those who may write to the database."""

from typing import Final

from tests.controls.removal import Removal

RULES: Final = "ports/audit_rules.py"

REMOVALS: Final = (
    Removal(
        "T15",
        RULES,
        "            if link(self._hash, seq, one.entry) != one.hash:\n",
        "            if not one.hash:\n",
        ("test_what_was_changed_is_told",),
    ),
    Removal(
        "T15",
        RULES,
        "        if self._signed.get(seq, one.hash) != one.hash:\n",
        "        if not self._signed.get(seq, one.hash):\n",
        ("test_what_was_changed_is_told",),
    ),
    Removal(
        "T15",
        "deploy/audit_signer.py",
        "        elif head.seq < seq or head.hash != known:\n",
        "        elif head.seq < 0:\n",
        (
            "test_the_signer_does_not_sign_what_contradicts",
            "test_a_head_that_went_back_or_aside_or_is_gone_is_never_signed",
        ),
    ),
    Removal(
        "T16",
        "adapters/postgres/migrations/0001_house.sql",
        "GRANT SELECT, INSERT ON agents, idempotency, run_events, audit_log TO ao_app;\n",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON agents, idempotency, run_events, audit_log TO ao_app;\n",
        ("test_the_audit_can_not_be_changed_by_services_or_people",),
    ),
    Removal(
        "R4",
        "adapters/postgres/migrations/0017_privacy.sql",
        "    RETURN ao_audit_note_erased(whose, numbers, p_namespace, p_actor_tenant, p_principal, p_correlation_id);\n",
        "    RETURN coalesce(cardinality(numbers), 0);\n",
        ("test_an_erasure_is_no_tampering_but_a_silent_one_is",),
    ),
    Removal(
        "R4",
        "adapters/inproc/audit.py",
        "            and one.entry.action not in KEPT\n            and (principal",
        "            and (principal",
        ("test_what_tells_of_an_erasure_stays",),
    ),
    Removal(
        "I14",
        "ports/audit.py",
        "    auth.require(READ if auth.tenant == tenant else ADMIN_PLATFORM)\n",
        "    auth.require(READ if tenant else ADMIN_PLATFORM)\n",
        ("test_reading_needs_its_scope_and_another_tenants_the_platforms",),
    ),
    Removal(
        "I14",
        "adapters/inproc/audit.py",
        "        return self.links.setdefault(tenant, [])\n",
        "        return self.links.setdefault(next(iter(self.links), tenant), [])\n",
        ("test_a_chain_tells_nothing_of_another_tenants",),
    ),
)
