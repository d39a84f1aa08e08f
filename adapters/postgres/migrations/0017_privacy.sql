-- Privacy: what is held for a court, and the removal of all that is kept of one principal.

CREATE TABLE legal_holds (
    tenant_id text        NOT NULL,
    id        uuid        NOT NULL DEFAULT uuidv7(),
    -- A principal; NULL: all of the tenant.
    subject   text,
    reason    text        NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    placed_by text        NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT ao_now(),
    lifted_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX legal_holds_in_force ON legal_holds (tenant_id, subject) WHERE lifted_at IS NULL;
ALTER TABLE legal_holds ENABLE ROW LEVEL SECURITY;
ALTER TABLE legal_holds FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON legal_holds TO ao_app
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))
    WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')));
GRANT SELECT, INSERT, UPDATE (lifted_at) ON legal_holds TO ao_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON legal_holds TO ao_admin;

GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT ON legal_holds TO ao_def;
GRANT SELECT, DELETE ON run_events TO ao_def;
GRANT SELECT, UPDATE (principal), DELETE ON request_records TO ao_def;
GRANT SELECT, UPDATE (principal, session) ON usage_events TO ao_def;
GRANT DELETE ON api_keys TO ao_def;

CREATE FUNCTION ao_held(p_tenant text, p_subject text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
    RETURN EXISTS (
        SELECT FROM legal_holds h
        WHERE h.tenant_id = p_tenant AND h.lifted_at IS NULL AND (h.subject IS NULL OR h.subject = p_subject)
    );

-- Whose transaction this is. A function that row-level security does not bind acts for nobody else.
CREATE FUNCTION ao_bound_tenant() RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := nullif(current_setting('app.tenant_id', true), '');
BEGIN
    IF v_tenant IS NULL OR position(' ' IN v_tenant) > 0 THEN
        RAISE EXCEPTION 'this needs a transaction that is bound to one tenant' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN v_tenant;
END
$$;

-- Held and erased is one or the other: whoever places a hold waits for the call that erases, and the next one finds the hold.
CREATE FUNCTION ao_lock_holds(p_tenant text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT pg_advisory_xact_lock(174487309, hashtext(p_tenant));
END;

-- Runs with all that hangs on them. Their bodies go where nobody else refers to them.
CREATE FUNCTION ao_remove_runs(p_tenants text[], p_runs uuid[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenants text[];
    v_hashes  bytea[];
    v_count   integer;
BEGIN
    WITH gone AS MATERIALIZED (SELECT * FROM unnest(p_tenants, p_runs) AS g (tenant_id, id)),
    keys AS (DELETE FROM idempotency x USING gone WHERE x.tenant_id = gone.tenant_id AND x.run_id = gone.id),
    journal AS (DELETE FROM steps x USING gone WHERE x.tenant_id = gone.tenant_id AND x.run_id = gone.id),
    strays AS (DELETE FROM run_events_default x USING gone WHERE x.tenant_id = gone.tenant_id AND x.run_id = gone.id),
    refs AS (
        DELETE FROM blob_refs x USING gone WHERE x.tenant_id = gone.tenant_id AND x.run_id = gone.id
        RETURNING x.tenant_id, x.sha256
    ),
    forgotten AS (DELETE FROM runs x USING gone WHERE x.tenant_id = gone.tenant_id AND x.id = gone.id RETURNING x.id)
    SELECT (SELECT count(*) FROM forgotten), array_agg(refs.tenant_id), array_agg(refs.sha256)
    INTO v_count, v_tenants, v_hashes
    FROM refs;
    -- Locked first and looked at again afterwards: somebody may refer to a body at this moment. Who holds its lock does.
    SELECT array_agg(l.tenant_id), array_agg(l.sha256) INTO v_tenants, v_hashes
    FROM (
        SELECT b.tenant_id, b.sha256
        FROM blobs b
        WHERE (b.tenant_id, b.sha256) IN (SELECT * FROM unnest(v_tenants, v_hashes))
        FOR UPDATE SKIP LOCKED
    ) l;
    DELETE FROM blobs b
    USING unnest(v_tenants, v_hashes) AS l (tenant_id, sha256)
    WHERE b.tenant_id = l.tenant_id AND b.sha256 = l.sha256
      AND NOT EXISTS (SELECT FROM blob_refs x WHERE x.tenant_id = b.tenant_id AND x.sha256 = b.sha256);
    RETURN v_count;
END
$$;

CREATE OR REPLACE FUNCTION ao_forget_runs(p_days integer, p_limit integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_now     timestamptz := ao_now();
    v_day     date := ao_today() - p_days;
    v_tenants text[];
    v_runs    uuid[];
BEGIN
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
    RETURN ao_remove_runs(v_tenants, v_runs);
END
$$;

-- How many of a principal's runs have not ended.
CREATE FUNCTION ao_open_runs_of(p_subject text) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
    RETURN (
        SELECT count(*) FROM runs r
        WHERE r.tenant_id = ao_bound_tenant() AND r.requester ->> 'principal' = p_subject
          AND r.status IN ('queued', 'running', 'waiting', 'needs_operator')
    );

-- Looks at the tenant's next runs after one, and removes those of the subject. `last`: where to go on; NULL: that were all.
CREATE FUNCTION ao_erase_runs(p_subject text, p_after uuid, p_limit integer, OUT removed integer, OUT last uuid)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_bound_tenant();
    v_runs   uuid[];
    v_seen   integer;
BEGIN
    WITH seen AS MATERIALIZED (
        SELECT r.id, r.requester ->> 'principal' = p_subject AND r.status IN ('succeeded', 'failed', 'cancelled') AS theirs
        FROM runs r
        WHERE r.tenant_id = v_tenant AND r.id > p_after
        ORDER BY r.id
        LIMIT p_limit
    )
    SELECT count(*), (array_agg(s.id ORDER BY s.id DESC))[1], array_agg(s.id) FILTER (WHERE s.theirs)
    INTO v_seen, last, v_runs
    FROM seen s;
    -- Not with their day, as when they are old: at once.
    DELETE FROM run_events e WHERE e.tenant_id = v_tenant AND e.run_id = ANY (v_runs);
    removed := ao_remove_runs(array_fill(v_tenant, ARRAY[coalesce(cardinality(v_runs), 0)]), coalesce(v_runs, '{}'));
    IF v_seen < p_limit THEN
        last := NULL;
    END IF;
END
$$;

CREATE FUNCTION ao_erase_requests(
    p_subject text, p_erased text, p_after uuid, p_limit integer, OUT records integer, OUT texts integer, OUT last uuid
)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_bound_tenant();
    v_theirs uuid[];
    v_seen   integer;
BEGIN
    WITH seen AS MATERIALIZED (
        SELECT r.id, r.principal = p_subject AS theirs
        FROM request_records r
        WHERE r.tenant_id = v_tenant AND r.id > p_after
        ORDER BY r.id
        LIMIT p_limit
    )
    SELECT count(*), (array_agg(s.id ORDER BY s.id DESC))[1], array_agg(s.id) FILTER (WHERE s.theirs)
    INTO v_seen, last, v_theirs
    FROM seen s;
    DELETE FROM request_contents c WHERE c.tenant_id = v_tenant AND c.id = ANY (v_theirs);
    GET DIAGNOSTICS texts = ROW_COUNT;
    UPDATE request_records r SET principal = p_erased WHERE r.tenant_id = v_tenant AND r.id = ANY (v_theirs);
    GET DIAGNOSTICS records = ROW_COUNT;
    IF v_seen < p_limit THEN
        last := NULL;
    END IF;
END
$$;

CREATE FUNCTION ao_erase_usage(
    p_subject text, p_erased text, p_after text, p_limit integer, OUT records integer, OUT last text
)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_bound_tenant();
    v_seen   integer;
BEGIN
    WITH seen AS MATERIALIZED (
        SELECT u.request_id
        FROM usage_events u
        WHERE u.tenant_id = v_tenant AND u.request_id > p_after
        ORDER BY u.request_id
        LIMIT p_limit
    )
    SELECT count(*), max(s.request_id) INTO v_seen, last FROM seen s;
    UPDATE usage_events u SET principal = p_erased, session = ''
    WHERE u.tenant_id = v_tenant AND u.request_id > p_after AND u.request_id <= last AND u.principal = p_subject;
    GET DIAGNOSTICS records = ROW_COUNT;
    IF v_seen < p_limit THEN
        last := NULL;
    END IF;
END
$$;

CREATE FUNCTION ao_erase_keys(p_subject text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_count integer;
BEGIN
    DELETE FROM api_keys k WHERE k.tenant_id = ao_bound_tenant() AND k.principal = p_subject;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- Of a day that is over: what nobody holds goes row by row where somebody holds something, and the day stays for the rest.
CREATE FUNCTION ao_thin_requests(p_lower uuid, p_upper uuid) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM legal_holds h
        JOIN request_records r ON r.tenant_id = h.tenant_id AND r.id >= p_lower AND r.id < p_upper
        WHERE h.lifted_at IS NULL AND (h.subject IS NULL OR h.subject = r.principal)
    ) THEN
        RETURN false;
    END IF;
    DELETE FROM request_records r
    WHERE r.id >= p_lower AND r.id < p_upper AND NOT ao_held(r.tenant_id, r.principal);
    RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION ao_drop_request_days(p_days integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    v_day     record;
    v_dropped integer := 0;
BEGIN
    IF p_days < 7 THEN
        RAISE EXCEPTION 'requests are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(174487303);
    FOR v_day IN
        SELECT p.name, p.lower, p.upper FROM ao_request_partitions() p
        WHERE p.upper <= ao_day_start(ao_today() - p_days) ORDER BY p.upper
    LOOP
        CONTINUE WHEN ao_thin_requests(v_day.lower, v_day.upper);
        EXECUTE format('DROP TABLE %I', v_day.name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END
$$;

CREATE OR REPLACE FUNCTION ao_forget_requests(p_days integer, p_limit integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_count integer;
    v_most  integer;
BEGIN
    IF p_days < 7 THEN
        RAISE EXCEPTION 'requests are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH due AS MATERIALIZED (
        SELECT c.tenant_id, c.id FROM request_contents c
        LEFT JOIN request_records r ON r.tenant_id = c.tenant_id AND r.id = c.id
        WHERE c.keep_until <= (SELECT ao_now()) AND NOT ao_held(c.tenant_id, r.principal)
        ORDER BY c.keep_until LIMIT p_limit FOR UPDATE OF c SKIP LOCKED
    )
    DELETE FROM request_contents c USING due WHERE c.tenant_id = due.tenant_id AND c.id = due.id;
    GET DIAGNOSTICS v_most = ROW_COUNT;
    WITH due AS MATERIALIZED (
        SELECT m.tenant_id, m.namespace, m.step_key FROM model_replies m
        WHERE m.forget_at <= (SELECT ao_now()) AND (m.completed OR m.lease_until <= (SELECT ao_now()))
        ORDER BY m.forget_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    )
    DELETE FROM model_replies m USING due
    WHERE m.tenant_id = due.tenant_id AND m.namespace = due.namespace AND m.step_key = due.step_key;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_most := greatest(v_most, v_count);
    WITH due AS MATERIALIZED (
        SELECT r.tenant_id, r.id FROM request_records_default r
        WHERE r.id < ao_day_start(ao_today() - p_days) AND NOT ao_held(r.tenant_id, r.principal)
        ORDER BY r.id LIMIT p_limit
    )
    DELETE FROM request_records_default r USING due WHERE r.tenant_id = due.tenant_id AND r.id = due.id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN greatest(v_most, v_count);
END
$$;

DO $$
DECLARE
    signature regprocedure;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'ao_held(text, text)', 'ao_open_runs_of(text)', 'ao_erase_runs(text, uuid, integer)',
        'ao_erase_requests(text, text, uuid, integer)', 'ao_erase_usage(text, text, text, integer)', 'ao_erase_keys(text)',
        'ao_thin_requests(uuid, uuid)', 'ao_remove_runs(text[], uuid[])'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('ALTER FUNCTION %s OWNER TO ao_def', signature);
    END LOOP;
END
$$;
SET LOCAL ROLE ao_def;
GRANT EXECUTE ON FUNCTION ao_held(text, text), ao_open_runs_of(text), ao_erase_runs(text, uuid, integer),
    ao_erase_requests(text, text, uuid, integer), ao_erase_usage(text, text, text, integer), ao_erase_keys(text) TO ao_app;
GRANT EXECUTE ON FUNCTION ao_thin_requests(uuid, uuid) TO ao_owner;
RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
