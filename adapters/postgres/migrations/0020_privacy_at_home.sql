-- Holds, rules of retention and erasings of tenants that live, or lived, in a home (see ADR 0044); and a tenant's version, by
-- which two administrators see that they change the same.
--
-- The shared database's holds and rules are the tenant's. Each home that it ever lived in has a copy of those in force, for
-- what removes rows there looks for them there.

GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT INSERT, UPDATE ON legal_holds TO ao_def;
GRANT INSERT, UPDATE, DELETE ON retention_rules TO ao_def;
GRANT UPDATE, DELETE ON subject_tombstones TO ao_def;

ALTER TABLE tenants ADD COLUMN version integer NOT NULL DEFAULT 1;

-- What changes a tenant makes a version of it, also where it does not know of versions, as code of before does not.
CREATE FUNCTION ao_tenant_version() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SET search_path = agentos, pg_temp
AS $$
BEGIN
    IF new.version = old.version AND (new.status <> old.status OR new.entitlements::text <> old.entitlements::text) THEN
        new.version := old.version + 1;
    END IF;
    RETURN new;
END
$$;
REVOKE ALL ON FUNCTION ao_tenant_version() FROM PUBLIC;
CREATE TRIGGER makes_a_version BEFORE UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION ao_tenant_version();

-- Puts these holds and rules in place of those that are here, of the tenant that the transaction is bound to. In the database
-- that has the tenant itself, and not a copy of its line, it does nothing but fail. Of a tenant that has not arrived, no rule
-- is in force: its rows must first be what they are where it comes from.
CREATE FUNCTION ao_copy_kept(p_holds json, p_rules json) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_bound_tenant();
BEGIN
    IF EXISTS (SELECT FROM tenants t WHERE t.tenant_id = v_tenant)
       AND NOT EXISTS (SELECT FROM tenant_copies c WHERE c.tenant = v_tenant) THEN
        RAISE EXCEPTION 'the tenant is at home here' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- As whoever places a hold.
    PERFORM pg_advisory_xact_lock(174487310);
    PERFORM ao_lock_holds(v_tenant);
    DELETE FROM legal_holds h
    WHERE h.tenant_id = v_tenant
      AND NOT EXISTS (SELECT FROM json_to_recordset(p_holds) AS n (id uuid) WHERE n.id = h.id);
    INSERT INTO legal_holds (tenant_id, id, subject, reason, placed_by, placed_at)
    SELECT v_tenant, n.id, n.subject, n.reason, n.placed_by, n.placed_at
    FROM json_to_recordset(p_holds) AS n (id uuid, subject text, reason text, placed_by text, placed_at timestamptz)
    ON CONFLICT (tenant_id, id) DO UPDATE SET released_at = NULL;
    IF EXISTS (SELECT FROM tenant_moves m WHERE m.tenant = v_tenant AND m.state = 'arriving') THEN
        DELETE FROM retention_rules r WHERE r.tenant_id = v_tenant;
        RETURN;
    END IF;
    DELETE FROM retention_rules r
    WHERE r.tenant_id = v_tenant
      AND NOT EXISTS (SELECT FROM json_to_recordset(p_rules) AS n (class text) WHERE n.class = r.class);
    INSERT INTO retention_rules AS r (tenant_id, class, days)
    SELECT v_tenant, n.class, n.days FROM json_to_recordset(p_rules) AS n (class text, days integer)
    ON CONFLICT (tenant_id, class) DO UPDATE SET days = excluded.days;
END
$$;
REVOKE ALL ON FUNCTION ao_copy_kept(json, json) FROM PUBLIC;
ALTER FUNCTION ao_copy_kept(json, json) OWNER TO ao_def;
SET LOCAL ROLE ao_def;
GRANT EXECUTE ON FUNCTION ao_copy_kept(json, json) TO ao_control;
-- As before, with all columns that there are by now.
CREATE OR REPLACE FUNCTION ao_tenant_list(p_after text, p_limit integer) RETURNS SETOF tenants
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT t.* FROM tenants t WHERE t.tenant_id > p_after ORDER BY t.tenant_id LIMIT p_limit;
END;
RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
