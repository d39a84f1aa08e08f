-- Administration has a role of its own, `ao_control`: member of `ao_app`, so that row-level security binds it to one tenant at
-- a time, and the only one that may do what the platform does. What follows takes that from the services.

DO $$
BEGIN
    IF to_regrole('ao_control') IS NULL THEN
        RAISE EXCEPTION 'the role ao_control is missing' USING HINT =
            'As the server''s administrator: CREATE ROLE ao_control LOGIN NOBYPASSRLS PASSWORD ''…''; '
            'GRANT ao_app TO ao_control WITH INHERIT TRUE, SET FALSE; GRANT CONNECT ON DATABASE … TO ao_control.';
    END IF;
END
$$;

REVOKE INSERT, UPDATE ON tenants FROM ao_app;
GRANT INSERT, UPDATE ON tenants TO ao_control;
REVOKE INSERT, UPDATE, DELETE ON budgets FROM ao_app;
GRANT INSERT, UPDATE, DELETE ON budgets TO ao_control;
-- They are the definer's to give away.
SET LOCAL ROLE ao_def;
REVOKE EXECUTE ON FUNCTION ao_tenant_list(text, integer) FROM ao_app;
GRANT EXECUTE ON FUNCTION ao_tenant_list(text, integer) TO ao_control;
REVOKE EXECUTE ON FUNCTION ao_gateway_configure(bigint, json, text, bigint, text, text, text, text, text, text) FROM ao_app;
GRANT EXECUTE ON FUNCTION ao_gateway_configure(bigint, json, text, bigint, text, text, text, text, text, text) TO ao_control;
REVOKE EXECUTE ON FUNCTION ao_audit_heads(text, integer) FROM ao_app;
GRANT EXECUTE ON FUNCTION ao_audit_heads(text, integer) TO ao_control;
REVOKE EXECUTE ON FUNCTION ao_audit_erase(bigint, bigint, text, text, text, text, text) FROM ao_app;
GRANT EXECUTE ON FUNCTION ao_audit_erase(bigint, bigint, text, text, text, text, text) TO ao_control;
RESET ROLE;

-- What is left of a tenant that was erased: its id, which nobody gets again, and which export was made of it.
CREATE TABLE tenant_tombstones (
    tenant_id     text        PRIMARY KEY,
    status        text        NOT NULL CHECK (status IN ('erasing', 'erased')),
    begun_at      timestamptz NOT NULL DEFAULT ao_now(),
    erased_at     timestamptz,
    actor_tenant  text        NOT NULL,
    principal     text        NOT NULL,
    export_sha256 text        NOT NULL
);
ALTER TABLE tenant_tombstones ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_tombstones FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON tenant_tombstones TO ao_app
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))
    WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')));
GRANT SELECT, INSERT, UPDATE ON tenant_tombstones TO ao_control;
GRANT SELECT ON tenant_tombstones TO ao_admin, ao_def;

-- Every table of tenants' rows, those of later migrations and days included, can be exported by administration and emptied by
-- the function below. The audit can't be emptied: it is for good.
DO $$
DECLARE
    v_table regclass;
BEGIN
    FOR v_table IN
        SELECT c.oid FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
        WHERE c.relnamespace = 'agentos'::regnamespace AND c.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO ao_control, ao_def', v_table);
        IF v_table::text !~ '^(agentos\.)?(audit|tenant_tombstones)' THEN
            EXECUTE format('GRANT DELETE ON %s TO ao_def', v_table);
        END IF;
    END LOOP;
END
$$;
ALTER DEFAULT PRIVILEGES IN SCHEMA agentos GRANT SELECT ON TABLES TO ao_control;
ALTER DEFAULT PRIVILEGES IN SCHEMA agentos GRANT SELECT, DELETE ON TABLES TO ao_def;

-- The tables of tenants' rows that can be erased, those that refer to others before them, the tenant itself last.
CREATE FUNCTION ao_tenant_tables() RETURNS TABLE (name text)
    LANGUAGE sql STABLE SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH RECURSIVE own AS (
        SELECT c.oid, c.relname
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
        WHERE c.relnamespace = CAST('agentos' AS regnamespace) AND c.relkind = 'r'
          AND c.relname !~ '^(audit|tenant_tombstones$)'
    ),
    depth AS (
        SELECT own.oid, 0 AS n FROM own
        UNION
        SELECT k.conrelid, depth.n + 1
        FROM depth
        JOIN pg_constraint k ON k.confrelid = depth.oid AND k.contype = 'f' AND k.conrelid <> k.confrelid
        WHERE depth.n < 32
    )
    SELECT CAST(own.relname AS text)
    FROM own
    JOIN depth ON depth.oid = own.oid
    GROUP BY own.relname
    ORDER BY own.relname = 'tenants', max(depth.n) DESC, own.relname;
END;

-- Removes at most so many rows of a tenant whose tombstone is there, and says how many.
GRANT CREATE ON SCHEMA agentos TO ao_def;
CREATE FUNCTION ao_erase_rows(p_tenant text, p_limit integer) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_table text;
    v_gone  bigint;
    v_total bigint := 0;
BEGIN
    IF NOT EXISTS (SELECT FROM tenant_tombstones x WHERE x.tenant_id = p_tenant) THEN
        RAISE EXCEPTION 'the tenant was not marked for erasing' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    FOR v_table IN SELECT t.name FROM ao_tenant_tables() t LOOP
        EXECUTE format(
            'DELETE FROM %1$I x WHERE x.ctid = ANY (ARRAY(SELECT y.ctid FROM %1$I y WHERE y.tenant_id = $1 LIMIT $2))', v_table
        ) USING p_tenant, p_limit - v_total;
        GET DIAGNOSTICS v_gone = ROW_COUNT;
        v_total := v_total + v_gone;
        EXIT WHEN v_total >= p_limit;
    END LOOP;
    RETURN v_total;
END
$$;
REVOKE ALL ON FUNCTION ao_tenant_tables(), ao_erase_rows(text, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_tenant_tables() TO ao_control, ao_def;
GRANT EXECUTE ON FUNCTION ao_erase_rows(text, integer) TO ao_control;
ALTER FUNCTION ao_erase_rows(text, integer) OWNER TO ao_def;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
