"""Services before PostgreSQL."""

from typing import Final

from tests.controls.removal import Removal

EMBEDDED: Final = "deploy/embedded_postgres.py"
ENGINE: Final = "adapters/postgres/engine.py"
BATCHES: Final = "adapters/postgres/migrations/0006_batches.sql"
"""Has the policies in force of most tables."""

REMOVALS: Final = (
    Removal(
        "S8",
        EMBEDDED,
        '                "--auth-local=scram-sha-256",\n',
        '                "--auth-local=trust",\n',
        ("test_nobody_is_trusted",),
    ),
    Removal(
        "S8",
        EMBEDDED,
        "    _private_directory(layout.sockets, mode=0o700, owner=os_user())\n",
        "    _private_directory(layout.sockets, mode=0o755, owner=os_user())\n",
        ("test_data_and_socket_are_their_owners_alone",),
    ),
    Removal(
        "T14",
        BATCHES,
        "           WITH CHECK (position(' ' || tenant_id || ' ' IN"
        " (SELECT ' ' || current_setting('app.tenant_id', true) || ' ')) > 0)$p$,\n",
        "           WITH CHECK (true)$p$,\n",
        ("test_a_row_of_another_tenant_can_not_be_written", "test_every_rule_is_kept"),
    ),
    Removal(
        "I12",
        BATCHES,
        "           USING (position(' ' || tenant_id || ' ' IN"
        " (SELECT ' ' || current_setting('app.tenant_id', true) || ' ')) > 0)\n",
        "           USING (true)\n",
        (
            "test_without_predicates_row_level_security_holds",
            "test_each_wall_holds_the_matrix_without_the_other_and_without_both_it_falls",
        ),
    ),
    Removal(
        "I12",
        "adapters/postgres/sql/run_reads.sql",
        "SELECT r.* FROM runs r WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run;\n",
        "SELECT r.* FROM runs r WHERE r.namespace = :namespace AND r.id = :run;\n",
        ("test_without_row_level_security_predicates_hold",),
    ),
    Removal(
        "I13",
        ENGINE,
        "BEGIN; SET LOCAL app.tenant_id",
        "BEGIN; SET app.tenant_id",
        ("test_a_connection_is_nobodys_between_two_transactions",),
    ),
    Removal(
        "I13",
        BATCHES,
        "           USING (position(' ' || tenant_id || ' ' IN"
        " (SELECT ' ' || current_setting('app.tenant_id', true) || ' ')) > 0)\n",
        "           USING (current_setting('app.tenant_id', true) IS NULL OR position(' ' || tenant_id || ' ' IN"
        " (SELECT ' ' || current_setting('app.tenant_id', true) || ' ')) > 0)\n",
        ("test_nobody_bound_sees_nothing",),
    ),
    Removal(
        "D17",
        "adapters/postgres/errors.py",
        '    "53": Unavailable,',
        '    "53": Internal,',
        ("test_what_was_accepted_before_and_while_the_disk_was_full_is_there_and_all_goes_on_with_room",),
    ),
    Removal(
        "D21",
        ENGINE,
        '        self._settings = SERVER_SETTINGS if flushed else {**SERVER_SETTINGS, "synchronous_commit": "off"}\n',
        '        self._settings = {**SERVER_SETTINGS, "synchronous_commit": "off"}\n',
        ("test_what_was_acknowledged_is_there_after_each_power_cut",),
    ),
    Removal(
        "E11",
        "adapters/postgres/bootstrap.py",
        "            REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC;\n",
        "",
        ("test_injected_sql_can_not_change_the_tenant_inside_a_query",),
    ),
    Removal(
        "E12",
        ENGINE,
        '        if role["bypasses"] or role["owns"]:\n',
        '        if not role["rolname"]:\n',
        ("test_a_service_refuses_a_role_that_could_see_every_tenant",),
    ),
)
