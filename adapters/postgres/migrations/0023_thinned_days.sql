-- A day of events that stays, for a run that is open or held, keeps nothing of runs that are gone. Until now they waited with it
-- for its end: for as long as somebody's hold, whosever they were.

-- Days of which runs were forgotten and their events not yet: how far they were looked through. The node's, not the tenants'.
CREATE TABLE event_days_to_thin (
    lower        uuid PRIMARY KEY,
    upper        uuid NOT NULL,
    after_tenant text NOT NULL DEFAULT '',
    after_run    uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
-- What is there may have waited for long.
INSERT INTO event_days_to_thin (lower, upper) SELECT p.lower, p.upper FROM ao_event_partitions() p;
ALTER TABLE event_days_to_thin ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_days_to_thin FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON event_days_to_thin TO ao_def;

GRANT CREATE ON SCHEMA agentos TO ao_def;
SET LOCAL ROLE ao_def;

-- As before, and notes whose day may stay.
CREATE OR REPLACE FUNCTION ao_forget_runs(p_days integer, p_limit integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_now     timestamptz := ao_now();
    v_day     date := ao_today() - p_days;
    v_tenants text[];
    v_runs    uuid[];
BEGIN
    PERFORM ao_share_holds();
    -- Whatever the caller believes: idempotency keys are promised for this long.
    IF p_days < 7 THEN
        RAISE EXCEPTION 'runs are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT array_agg(g.tenant_id), array_agg(g.id) INTO v_tenants, v_runs
    FROM (
        SELECT r.tenant_id, r.id
        FROM runs r
        WHERE r.id < ao_day_start(v_day) AND r.created_at < CAST(v_day AS timestamp) AT TIME ZONE 'UTC'
          AND r.status IN ('succeeded', 'failed', 'cancelled') AND r.finished_at < v_now - interval '7 days'
          AND NOT ao_held(r.tenant_id, r.requester ->> 'principal')
        ORDER BY r.id
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    ) g;
    IF v_runs IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO event_days_to_thin AS d (lower, upper)
    SELECT DISTINCT p.lower, p.upper FROM unnest(v_runs) AS g (id) JOIN ao_event_partitions() p
        ON g.id >= p.lower AND g.id < p.upper
    ORDER BY p.lower
    ON CONFLICT (lower) DO UPDATE SET after_tenant = excluded.after_tenant, after_run = excluded.after_run;
    RETURN ao_remove_runs(v_tenants, v_runs, false);
END
$$;

-- The events of runs that are gone, of the oldest day that is to be looked through: of so many of its runs, one after the
-- other. Whether there may be more. A tenant that moves has events here whose runs are still, or already, elsewhere.
CREATE FUNCTION ao_thin_event_days(p_limit integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_day    event_days_to_thin;
    v_seen   integer;
    v_tenant text;
    v_run    uuid;
BEGIN
    IF EXISTS (SELECT FROM tenant_moves m WHERE m.state <> 'left') THEN
        RETURN false;
    END IF;
    -- They go as a whole, or have.
    DELETE FROM event_days_to_thin d USING (
        SELECT x.lower FROM event_days_to_thin x WHERE NOT ao_runs_exist(x.lower, x.upper) FOR UPDATE SKIP LOCKED
    ) gone
    WHERE d.lower = gone.lower;
    SELECT d.* INTO v_day FROM event_days_to_thin d ORDER BY d.lower LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    WITH RECURSIVE walked AS (
        (SELECT e.tenant_id, e.run_id FROM run_events e
         WHERE e.run_id >= v_day.lower AND e.run_id < v_day.upper
           AND (e.tenant_id, e.run_id) > (v_day.after_tenant, v_day.after_run)
         ORDER BY e.tenant_id, e.run_id LIMIT 1)
        UNION ALL
        SELECT n.tenant_id, n.run_id FROM walked w CROSS JOIN LATERAL (
            SELECT e.tenant_id, e.run_id FROM run_events e
            WHERE e.run_id >= v_day.lower AND e.run_id < v_day.upper AND (e.tenant_id, e.run_id) > (w.tenant_id, w.run_id)
            ORDER BY e.tenant_id, e.run_id LIMIT 1
        ) n
    ),
    seen AS MATERIALIZED (SELECT w.tenant_id, w.run_id FROM walked w LIMIT p_limit),
    thinned AS (
        DELETE FROM run_events e USING seen s
        WHERE e.tenant_id = s.tenant_id AND e.run_id = s.run_id
          AND NOT EXISTS (SELECT FROM runs r WHERE r.tenant_id = s.tenant_id AND r.id = s.run_id)
    )
    SELECT count(*), (array_agg(s.tenant_id ORDER BY s.tenant_id DESC, s.run_id DESC))[1],
           (array_agg(s.run_id ORDER BY s.tenant_id DESC, s.run_id DESC))[1]
    INTO v_seen, v_tenant, v_run
    FROM seen s;
    IF v_seen < p_limit THEN
        DELETE FROM event_days_to_thin d WHERE d.lower = v_day.lower;
    ELSE
        UPDATE event_days_to_thin d SET after_tenant = v_tenant, after_run = v_run WHERE d.lower = v_day.lower;
    END IF;
    RETURN EXISTS (SELECT FROM event_days_to_thin);
END
$$;
REVOKE ALL ON FUNCTION ao_thin_event_days(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_thin_event_days(integer) TO ao_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
