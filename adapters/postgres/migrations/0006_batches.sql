-- A transaction may be bound to the tenants of a batch: `app.tenant_id` is one tenant's id, or several apart by spaces, which
-- no id holds. The tables that calls of a batch are about admit all of them; every other table goes on to admit one tenant
-- only, and shows nothing to a batch of several.

CREATE OR REPLACE FUNCTION ao_guard_events(p_partition text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = agentos, pg_temp
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', p_partition);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', p_partition);
    EXECUTE format('DROP POLICY IF EXISTS own_tenant ON %I', p_partition);
    -- The setting is NULL before its first use and '' after its transaction: in neither lies anybody's id between spaces.
    EXECUTE format(
        $p$CREATE POLICY own_tenant ON %I TO ao_app
           USING (position(' ' || tenant_id || ' ' IN (SELECT ' ' || current_setting('app.tenant_id', true) || ' ')) > 0)
           WITH CHECK (position(' ' || tenant_id || ' ' IN (SELECT ' ' || current_setting('app.tenant_id', true) || ' ')) > 0)$p$,
        p_partition);
END
$$;

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT unnest(ARRAY[
            'tenants', 'agents', 'runs', 'idempotency', 'steps', 'run_events', 'audit_log', 'blobs', 'blob_refs', 'run_slots',
            'run_rates', 'run_backlogs', 'queue_messages', 'queue_turns'
        ])
        UNION ALL
        SELECT CAST(c.relname AS text) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'run_events'::regclass
    LOOP
        PERFORM ao_guard_events(name);
    END LOOP;
END
$$;
