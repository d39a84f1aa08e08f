-- What the gateway notes of each request, by day; prompts and answers of tenants that want them kept; and journaled replies
-- that are kept for less than the longest time there is.

-- A reply is forgotten when its own time is over. Of those that are there, 7 days from now: one moment for all of them, so
-- that no row is rewritten.
ALTER TABLE model_replies
    ADD COLUMN keep interval NOT NULL DEFAULT interval '7 days',
    ADD COLUMN forget_at timestamptz NOT NULL DEFAULT now() + interval '7 days';
ALTER TABLE model_replies ALTER COLUMN forget_at SET DEFAULT ao_now() + interval '7 days';

-- A request's id begins with the time it was made at (UUIDv7), so a range of ids is a day: see 0004.
CREATE TABLE request_records (
    tenant_id         text        NOT NULL,
    id                uuid        NOT NULL,
    at                timestamptz NOT NULL,
    namespace         text        NOT NULL,
    principal         text        NOT NULL,
    correlation_id    text        NOT NULL,
    route             text        NOT NULL,
    stream            boolean     NOT NULL,
    model_asked       text        NOT NULL,
    model             text        NOT NULL,
    backend           text        NOT NULL,
    status            integer     NOT NULL,
    code              text        NOT NULL,
    denied            boolean     NOT NULL,
    decision          text        NOT NULL,
    reasons           json        NOT NULL,
    attempts          json        NOT NULL,
    prompt_tokens     bigint      NOT NULL,
    completion_tokens bigint      NOT NULL,
    cost_nanousd      bigint      NOT NULL,
    estimated         boolean     NOT NULL,
    latency_ms        bigint      NOT NULL,
    replayed          boolean     NOT NULL,
    joined            boolean     NOT NULL,
    kept_until        timestamptz,
    PRIMARY KEY (tenant_id, id)
) PARTITION BY RANGE (id);
CREATE TABLE request_records_default PARTITION OF request_records DEFAULT;

-- Sealed by the gateway: whoever has the database alone reads nothing.
CREATE TABLE request_contents (
    tenant_id  text        NOT NULL,
    id         uuid        NOT NULL,
    sealed     bytea       NOT NULL,
    keep_until timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX request_contents_by_end ON request_contents (keep_until);

SELECT ao_guard_events('request_records');
SELECT ao_guard_events('request_records_default');
SELECT ao_guard_events('request_contents');
GRANT SELECT, INSERT ON request_records, request_contents TO ao_app;
GRANT SELECT ON request_records TO ao_admin;
GRANT SELECT, INSERT, UPDATE, DELETE ON request_contents TO ao_admin;

CREATE FUNCTION ao_request_partitions() RETURNS TABLE (name text, lower uuid, upper uuid)
    LANGUAGE sql STABLE SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT CAST(c.relname AS text),
           CAST(substring(b.bound FROM 'FROM \(''([0-9a-f-]+)''\)') AS uuid),
           CAST(substring(b.bound FROM 'TO \(''([0-9a-f-]+)''\)') AS uuid)
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid,
         LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) b
    WHERE i.inhparent = 'request_records'::regclass AND b.bound <> 'DEFAULT';
END;

CREATE FUNCTION ao_make_request_days(p_ahead integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    v_day  date;
    v_name text;
    v_made integer := 0;
BEGIN
    IF p_ahead NOT BETWEEN 0 AND 31 THEN
        RAISE EXCEPTION 'days ahead must be 0 to 31, not %', p_ahead USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Any number does, as long as all callers agree on it.
    PERFORM pg_advisory_xact_lock(174487303);
    FOR v_day IN SELECT ao_today() + n FROM generate_series(0, p_ahead) AS n LOOP
        CONTINUE WHEN EXISTS (SELECT FROM ao_request_partitions() p WHERE p.lower = ao_day_start(v_day));
        v_name := 'request_records_' || to_char(v_day, 'YYYYMMDD');
        EXECUTE format('CREATE TABLE %I (LIKE request_records INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_name);
        IF pg_relation_size('request_records_default') > 0 THEN
            -- As with events: what the day has so far moves, and nobody comes in between.
            ALTER TABLE request_records_default NO FORCE ROW LEVEL SECURITY;
            EXECUTE format(
                $m$WITH moved AS (DELETE FROM request_records_default WHERE id >= %L AND id < %L RETURNING *)
                   INSERT INTO %I SELECT * FROM moved$m$, ao_day_start(v_day), ao_day_start(v_day + 1), v_name);
            ALTER TABLE request_records_default FORCE ROW LEVEL SECURITY;
        END IF;
        PERFORM ao_guard_events(v_name);
        EXECUTE format('ALTER TABLE request_records ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       v_name, ao_day_start(v_day), ao_day_start(v_day + 1));
        v_made := v_made + 1;
    END LOOP;
    RETURN v_made;
END
$$;

CREATE FUNCTION ao_drop_request_days(p_days integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    v_name    text;
    v_dropped integer := 0;
BEGIN
    IF p_days < 7 THEN
        RAISE EXCEPTION 'requests are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(174487303);
    FOR v_name IN
        SELECT p.name FROM ao_request_partitions() p WHERE p.upper <= ao_day_start(ao_today() - p_days) ORDER BY p.upper
    LOOP
        EXECUTE format('DROP TABLE %I', v_name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END
$$;

GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT, DELETE ON request_records_default TO ao_def;
GRANT SELECT, UPDATE, DELETE ON request_contents TO ao_def;

-- Across tenants, what is kept no longer, a batch at a time: contents, replies, and records of days that nobody made.
CREATE FUNCTION ao_forget_requests(p_days integer, p_limit integer) RETURNS integer
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
        SELECT c.tenant_id, c.id FROM request_contents c WHERE c.keep_until <= (SELECT ao_now())
        ORDER BY c.keep_until LIMIT p_limit FOR UPDATE SKIP LOCKED
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
        SELECT r.tenant_id, r.id FROM request_records_default r WHERE r.id < ao_day_start(ao_today() - p_days)
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
        'ao_make_request_days(integer)', 'ao_drop_request_days(integer)', 'ao_forget_requests(integer, integer)'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO ao_app', signature);
    END LOOP;
END
$$;
ALTER FUNCTION ao_forget_requests(integer, integer) OWNER TO ao_def;

REVOKE CREATE ON SCHEMA agentos FROM ao_def;

SELECT ao_make_request_days(7);
