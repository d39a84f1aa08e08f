"""Administration."""

from typing import Final

from tests.controls.removal import Removal

PRIVACY: Final = "adapters/postgres/migrations/0017_privacy.sql"
SECRETS: Final = "deploy/roots/gateway_secrets.py"

REMOVALS: Final = (
    Removal(
        "S7",
        "deploy/roots/admin.py",
        "        **verifier_of_a_node(env, AUDIENCE),\n",
        '        **verifier_of_a_node(env, "stack-a"),\n',
        ("test_it_takes_tokens_of_its_own_audience_and_knows_the_rest_of_the_node",),
    ),
    Removal(
        "T11",
        "ports/http/versions.py",
        "    if sent is None and required:\n",
        "    if sent is None and not of:\n",
        ("test_a_change_of_what_was_not_looked_at_is_refused",),
    ),
    Removal(
        "T12",
        "adapters/postgres/migrations/0015_administration.sql",
        "REVOKE INSERT, UPDATE ON tenants FROM ao_app;\n",
        "",
        ("test_the_services_role_can_do_nothing_of_this",),
    ),
    Removal(
        "R3",
        "adapters/postgres/audit.py",
        "                await _note(transaction, [_ask(auth, looked(tenant), tenant)])\n",
        "                pass\n",
        ("test_a_look_into_anothers_audit_is_in_it_and_only_the_platforms",),
    ),
    Removal(
        "R3",
        "deploy/administration/offboarding.py",
        "    if confirmed != tenant:\n",
        "    if not tenant:\n",
        ("test_a_tenant_is_deleted_only_when_disabled_confirmed_idle_and_exported",),
    ),
    Removal(
        "I10",
        SECRETS,
        '        if not where or where not in variables.get(NAMES, "").split(","):\n',
        "        if not where:\n",
        ("test_whatever_else_is_refused_and_no_content_is_told",),
    ),
    Removal(
        "I10",
        SECRETS,
        "        if not directory or not Path(where)",
        "        if directory and not Path(where)",
        ("test_without_a_directory_no_file_is_allowed",),
    ),
    Removal(
        "E9",
        "deploy/administration/routes.py",
        '    Route(method="POST", template=KILL, access=ADMIN_PLATFORM, mutation=True, query=()),\n',
        '    Route(method="POST", template=KILL, access="runs:read", mutation=True, query=()),\n',
        ("test_every_route_is_the_platforms_alone",),
    ),
    Removal(
        "E9",
        "stack_b/http/admin.py",
        '    Route(method="GET", template=CURRENT, access=ADMIN_PLATFORM, query=()),\n',
        '    Route(method="GET", template=CURRENT, access="admin:tenant", query=()),\n',
        ("test_every_route_asks_who_it_is_and_for_the_platforms_scope",),
    ),
    Removal(
        "I11",
        PRIVACY,
        "    UPDATE usage_events u SET principal = 'erased', session = '', correlation_id = ''\n",
        "    UPDATE usage_events u SET session = '', correlation_id = ''\n",
        (
            "test_after_an_erasing_no_table_says_a_word_of_the_subject",
            "test_after_an_erasing_no_table_of_either_place_says_a_word",
        ),
    ),
    Removal(
        "I11",
        "adapters/postgres/subject_tables.py",
        '    "usage_events": "x.principal = $2",\n',
        "",
        ("test_every_table_of_tenants_rows_says_whether_it_has_a_subjects",),
    ),
    Removal(
        "I11",
        "adapters/postgres/maintenance.py",
        '            events = await step("thin_event_days", {"limit": ROWS})\n',
        '            events = {"more": False}\n',
        ("test_a_day_that_stays_keeps_nothing_of_runs_that_are_gone",),
    ),
    Removal(
        "T13",
        PRIVACY,
        "        WHERE h.tenant_id = p_tenant AND h.released_at IS NULL\n          AND (h.subject",
        "        WHERE h.tenant_id = p_tenant AND h.released_at IS NOT NULL\n          AND (h.subject",
        ("test_under_a_hold_nothing_goes", "test_what_is_held_stays_in_both_whatever_its_age"),
    ),
    Removal(
        "T13",
        PRIVACY,
        "GRANT SELECT, INSERT, UPDATE (released_at) ON legal_holds TO ao_control;\n",
        "GRANT SELECT, INSERT, UPDATE (released_at), DELETE ON legal_holds TO ao_control;\n",
        ("test_administration_erases_nothing_without_a_tombstone_or_past_a_hold",),
    ),
    Removal(
        "T13",
        "adapters/postgres/migrations/0020_privacy_at_home.sql",
        "    IF EXISTS (SELECT FROM tenants t WHERE t.tenant_id = v_tenant)\n",
        "    IF v_tenant = ''\n",
        ("test_nobody_copies_over_what_the_directory_says",),
    ),
    Removal(
        "E10",
        PRIVACY,
        "GRANT SELECT, INSERT, UPDATE (released_at) ON legal_holds TO ao_control;\n",
        "GRANT SELECT, INSERT, UPDATE (released_at) ON legal_holds TO ao_control, ao_app;\n",
        ("test_the_services_can_do_nothing_of_this",),
    ),
)
