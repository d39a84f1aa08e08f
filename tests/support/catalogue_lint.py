"""Rules that the database's catalogue must keep, as queries for what breaks them.

Each rule is a query that returns one text per offence in the schema `agentos`.
"""

from typing import Final

_TENANT_TABLES: Final = """
    SELECT c.oid, c.relname, c.relrowsecurity, c.relforcerowsecurity
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
    WHERE c.relnamespace = 'agentos'::regnamespace AND c.relkind IN ('r', 'p')
"""

RULES: Final[dict[str, str]] = {
    "row-level security is on and forced, partitions included": f"""
        SELECT t.relname FROM ({_TENANT_TABLES}) t WHERE NOT (t.relrowsecurity AND t.relforcerowsecurity)
    """,
    "a policy binds what ao_app reads and what it writes": f"""
        SELECT t.relname FROM ({_TENANT_TABLES}) t
        WHERE NOT EXISTS (
            SELECT FROM pg_policy p
            WHERE p.polrelid = t.oid AND p.polcmd = '*' AND p.polroles = ARRAY['ao_app'::regrole::oid]
              AND pg_get_expr(p.polqual, p.polrelid) LIKE '%tenant_id%app.tenant_id%'
              AND pg_get_expr(p.polwithcheck, p.polrelid) LIKE '%tenant_id%app.tenant_id%'
        ) OR EXISTS (
            SELECT FROM pg_policy p
            WHERE p.polrelid = t.oid
              AND (p.polwithcheck IS NULL OR pg_get_expr(p.polqual, p.polrelid) NOT LIKE '%app.tenant_id%')
        )
    """,
    "every unique key begins with tenant_id": f"""
        SELECT i.indexrelid::regclass::text FROM ({_TENANT_TABLES}) t
        JOIN pg_index i ON i.indrelid = t.oid AND i.indisunique
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = 'tenant_id'
        WHERE i.indkey[0] <> a.attnum
    """,
    "every foreign key carries tenant_id": f"""
        SELECT k.conname FROM ({_TENANT_TABLES}) t
        JOIN pg_constraint k ON k.conrelid = t.oid AND k.contype = 'f'
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = 'tenant_id'
        WHERE NOT a.attnum = ANY (k.conkey)
    """,
    "views that ao_app may read run as their invoker; materialized ones it may not read": """
        SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = 'agentos'::regnamespace AND has_table_privilege('ao_app', c.oid, 'SELECT')
          AND (c.relkind = 'm' OR c.relkind = 'v'
               AND NOT coalesce(c.reloptions @> ARRAY['security_invoker=true'], false))
    """,
    "functions that run as their definer fix the search path and are closed to the public": """
        SELECT p.proname FROM pg_proc p
        WHERE p.pronamespace = 'agentos'::regnamespace AND p.prosecdef
          AND (NOT EXISTS (SELECT FROM unnest(p.proconfig) AS s WHERE s LIKE 'search_path=%pg_temp')
               OR EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x WHERE x.grantee = 0))
    """,
    "no function claims to be leakproof": """
        SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'agentos'::regnamespace AND p.proleakproof
    """,
    "ao_app is neither superuser nor above row-level security, owns nothing and is nobody else": """
        SELECT 'attributes' FROM pg_roles r
        WHERE r.rolname = 'ao_app'
          AND (r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication)
        UNION ALL
        SELECT 'owns ' || c.relname FROM pg_class c WHERE c.relowner = 'ao_app'::regrole
        UNION ALL
        SELECT 'member of ' || m.roleid::regrole FROM pg_auth_members m WHERE m.member = 'ao_app'::regrole
    """,
    "ao_control is ao_app and nobody else, and not above row-level security": """
        SELECT 'attributes' FROM pg_roles r
        WHERE r.rolname = 'ao_control'
          AND (r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication)
        UNION ALL
        SELECT 'owns ' || c.relname FROM pg_class c WHERE c.relowner = 'ao_control'::regrole
        UNION ALL
        SELECT 'member of ' || m.roleid::regrole FROM pg_auth_members m
        WHERE m.member = 'ao_control'::regrole AND m.roleid <> 'ao_app'::regrole
    """,
    "what only the platform does is closed to the services": """
        SELECT c.relname || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relname IN
              ('tenants', 'budgets', 'tenant_tombstones', 'legal_holds', 'subject_tombstones', 'retention_rules')
          AND (has_table_privilege('ao_app', c.oid, privilege)
               OR privilege <> 'DELETE' AND has_any_column_privilege('ao_app', c.oid, privilege))
        UNION ALL
        SELECT p.proname FROM pg_proc p
        WHERE p.pronamespace = 'agentos'::regnamespace
          AND (p.proname IN ('ao_tenant_list', 'ao_gateway_configure', 'ao_audit_erase', 'ao_audit_heads', 'ao_end_erasing')
               OR p.proname LIKE 'ao\\_erase\\_%')
          AND has_function_privilege('ao_app', p.oid, 'EXECUTE')
    """,
    "nobody but the definer erases rows that something may hold": """
        SELECT c.relname || ' ' || role || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['ao_app', 'ao_control', 'ao_admin']) AS role,
             unnest(ARRAY['UPDATE', 'DELETE']) AS privilege
        WHERE c.relnamespace = 'agentos'::regnamespace
          AND (c.relname = 'legal_holds' AND has_table_privilege(role, c.oid, privilege)
               OR c.relname = 'subject_tombstones' AND privilege = 'DELETE' AND has_table_privilege(role, c.oid, privilege))
        UNION ALL
        SELECT p.proname || ' ' || role
        FROM pg_proc p, unnest(ARRAY['ao_app', 'ao_control', 'ao_admin', 'ao_owner']) AS role
        WHERE p.pronamespace = 'agentos'::regnamespace
          AND p.proname IN ('ao_remove_runs', 'ao_erasing', 'ao_audit_forget')
          AND has_function_privilege(role, p.oid, 'EXECUTE')
    """,
    "neither services nor administration can take anything out of the audit": """
        SELECT c.relname || ' ' || role || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['ao_app', 'ao_control']) AS role,
             unnest(ARRAY['UPDATE', 'DELETE']) AS privilege
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relname = 'audit_log'
          AND has_table_privilege(role, c.oid, privilege)
    """,
    "ao_app can not call set_config": """
        SELECT p.proname FROM pg_proc p
        WHERE p.proname = 'set_config' AND has_function_privilege('ao_app', p.oid, 'EXECUTE')
    """,
    "ao_app can not truncate, refer to or trigger on any table": """
        SELECT c.relname || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER']) AS privilege
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
          AND has_table_privilege('ao_app', c.oid, privilege)
    """,
    "events, agents' versions, the gateway's, usage and the audit are only ever added to": """
        SELECT c.relname || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['UPDATE', 'DELETE']) AS privilege
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relname ~
              '^(run_events|agents$|audit_(log|chain|heads)$|usage_events$|request_records|request_contents$|gateway_configurations$)'
          AND (has_table_privilege('ao_app', c.oid, privilege)
               OR privilege = 'UPDATE' AND has_any_column_privilege('ao_app', c.oid, privilege))
    """,
    "the audit's links and heads are written by its trigger only": """
        SELECT c.relname || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) AS privilege,
             unnest(ARRAY['ao_app', 'ao_admin']) AS role
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relname IN ('audit_chain', 'audit_heads')
          AND has_table_privilege(role, c.oid, privilege)
        UNION ALL
        SELECT 'no trigger that waits for the commit' WHERE NOT EXISTS (
            SELECT FROM pg_trigger t
            WHERE t.tgrelid = 'agentos.audit_log'::regclass AND t.tgname = 'linked' AND t.tgenabled = 'O'
              AND t.tgdeferrable AND t.tginitdeferred
        )
    """,
    "the gateway's configuration is changed by its function only": """
        SELECT c.relname || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relname = 'gateway_configurations'
          AND has_table_privilege('ao_app', c.oid, privilege)
    """,
    "partitions are reached through their parent only": """
        SELECT c.relname || ' ' || privilege
        FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relispartition AND c.relkind IN ('r', 'p')
          AND has_table_privilege('ao_app', c.oid, privilege)
    """,
    "nobody but our roles may connect": """
        SELECT d.datname FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x
        WHERE d.datname = current_database() AND x.grantee = 0
    """,
}

BREAKAGES: Final[dict[str, str]] = {
    "row-level security is on and forced, partitions included": """
        CREATE TABLE outbox (tenant_id text NOT NULL, id uuid NOT NULL) PARTITION BY LIST (tenant_id);
        ALTER TABLE outbox ENABLE ROW LEVEL SECURITY;
        ALTER TABLE outbox FORCE ROW LEVEL SECURITY;
        CREATE TABLE outbox_1 PARTITION OF outbox DEFAULT;
    """,
    "a policy binds what ao_app reads and what it writes": """
        ALTER POLICY own_tenant ON runs USING (true);
    """,
    "every unique key begins with tenant_id": "CREATE UNIQUE INDEX oracle ON runs (id)",
    "every foreign key carries tenant_id": """
        CREATE TABLE projects (id uuid PRIMARY KEY);
        ALTER TABLE runs ADD COLUMN project uuid REFERENCES projects (id);
    """,
    "views that ao_app may read run as their invoker; materialized ones it may not read": """
        CREATE VIEW everything AS SELECT * FROM runs;
        GRANT SELECT ON everything TO ao_app;
    """,
    "functions that run as their definer fix the search path and are closed to the public": """
        CREATE FUNCTION loose() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM runs';
    """,
    "no function claims to be leakproof": """
        CREATE FUNCTION leaky(text) RETURNS boolean LANGUAGE sql LEAKPROOF AS 'SELECT true';
    """,
    "ao_app is neither superuser nor above row-level security, owns nothing and is nobody else": """
        CREATE TABLE mine (id integer);
        ALTER TABLE mine OWNER TO ao_app;
    """,
    "ao_control is ao_app and nobody else, and not above row-level security": "GRANT ao_def TO ao_control",
    "what only the platform does is closed to the services": "GRANT UPDATE (status) ON tenants TO ao_app",
    "nobody but the definer erases rows that something may hold": "GRANT DELETE ON legal_holds TO ao_control",
    "neither services nor administration can take anything out of the audit": "GRANT DELETE ON audit_log TO ao_control",
    "ao_app can not call set_config": """
        GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO ao_app;
    """,
    "ao_app can not truncate, refer to or trigger on any table": "GRANT TRUNCATE ON steps TO ao_app",
    "events, agents' versions, the gateway's, usage and the audit are only ever added to": """
        GRANT UPDATE (data) ON run_events TO ao_app
    """,
    "the audit's links and heads are written by its trigger only": "GRANT INSERT ON audit_chain TO ao_app",
    "the gateway's configuration is changed by its function only": "GRANT INSERT ON gateway_configurations TO ao_app",
    "partitions are reached through their parent only": "GRANT SELECT ON run_events_default TO ao_app",
    "nobody but our roles may connect": "DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO PUBLIC', "
    "current_database()); END $$",
}
"""For each rule, what breaks it: a rule that can't fail proves nothing."""
