-- Events by day, large bodies by hash, and what keeps both from growing for ever.
--
-- A run's id begins with the time it was made at (UUIDv7), so a range of ids is a day. All events of a run lie in one
-- partition, a statement that names the run finds it while planning, and a day nobody needs any more is dropped instead
-- of being deleted row by row.

CREATE FUNCTION ao_day_start(p_day date) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CAST(rpad(lpad(to_hex(CAST(extract(epoch FROM p_day) * 1000 AS bigint)), 12, '0'), 32, '0') AS uuid);

CREATE FUNCTION ao_today() RETURNS date LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN CAST(ao_now() AT TIME ZONE 'UTC' AS date);

-- What every partition needs for itself: row-level security is not inherited. Nobody is granted anything on a partition,
-- so that the services reach it through its parent only.
CREATE FUNCTION ao_guard_events(p_partition text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = agentos, pg_temp
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', p_partition);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', p_partition);
    EXECUTE format(
        $p$CREATE POLICY own_tenant ON %I TO ao_app
           USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))
           WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))$p$, p_partition);
END
$$;

-- What is there becomes the first partition, whole: nothing is copied. There is no foreign key to `runs` any more. Events
-- are only ever written with their run's row locked, and when a run is forgotten its events stay, out of reach, until
-- their day is dropped.
ALTER TABLE run_events RENAME TO run_events_first;
ALTER INDEX run_events_pkey RENAME TO run_events_first_pkey;
ALTER TABLE run_events_first DROP CONSTRAINT run_events_tenant_id_run_id_fkey;
REVOKE ALL ON run_events_first FROM ao_app, ao_admin;
CREATE TABLE run_events (LIKE run_events_first INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY RANGE (run_id);
ALTER TABLE run_events ADD PRIMARY KEY (tenant_id, run_id, sequence);
SELECT ao_guard_events('run_events');
GRANT SELECT, INSERT ON run_events TO ao_app;
GRANT SELECT ON run_events TO ao_admin;
DO $$
BEGIN
    -- The owner sees no row of anybody while it is forced to keep the policy.
    ALTER TABLE run_events_first NO FORCE ROW LEVEL SECURITY;
    IF EXISTS (SELECT FROM run_events_first) THEN
        ALTER TABLE run_events_first FORCE ROW LEVEL SECURITY;
        EXECUTE format(
            'ALTER TABLE run_events ATTACH PARTITION run_events_first FOR VALUES FROM (MINVALUE) TO (%L)',
            ao_day_start(ao_today() + 1));
    ELSE
        DROP TABLE run_events_first;
    END IF;
END
$$;
-- For days that nobody made in time.
CREATE TABLE run_events_default PARTITION OF run_events DEFAULT;
SELECT ao_guard_events('run_events_default');

-- Large bodies: what is over 64 KiB in a row of a run is a reference there, and lies here once per tenant.
CREATE TABLE blobs (
    tenant_id  text        NOT NULL,
    sha256     bytea       NOT NULL CHECK (octet_length(sha256) = 32),
    body       bytea       NOT NULL,
    touched_at timestamptz NOT NULL DEFAULT ao_now(),
    PRIMARY KEY (tenant_id, sha256)
);
-- Which runs need which: one row, however often a run refers to a body.
CREATE TABLE blob_refs (
    tenant_id text  NOT NULL,
    run_id    uuid  NOT NULL,
    sha256    bytea NOT NULL,
    PRIMARY KEY (tenant_id, run_id, sha256),
    FOREIGN KEY (tenant_id, run_id) REFERENCES runs (tenant_id, id),
    FOREIGN KEY (tenant_id, sha256) REFERENCES blobs (tenant_id, sha256)
);
CREATE INDEX blob_refs_by_blob ON blob_refs (tenant_id, sha256);
SELECT ao_guard_events('blobs');
SELECT ao_guard_events('blob_refs');
GRANT SELECT, INSERT, UPDATE (touched_at) ON blobs TO ao_app;
GRANT SELECT, INSERT ON blob_refs TO ao_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON blobs, blob_refs TO ao_admin;

-- For retention: the oldest runs of all tenants, and the keys of a run.
CREATE INDEX runs_by_age ON runs (id);
CREATE INDEX idempotency_by_run ON idempotency (tenant_id, run_id);

CREATE FUNCTION ao_event_partitions() RETURNS TABLE (name text, lower uuid, upper uuid)
    LANGUAGE sql STABLE SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT CAST(c.relname AS text),
           coalesce(CAST(substring(b.bound FROM 'FROM \(''([0-9a-f-]+)''\)') AS uuid), CAST(repeat('0', 32) AS uuid)),
           CAST(substring(b.bound FROM 'TO \(''([0-9a-f-]+)''\)') AS uuid)
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid,
         LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) b
    WHERE i.inhparent = 'run_events'::regclass AND b.bound <> 'DEFAULT';
END;

-- The next three run as their definer. The first and the last make and drop tables, which only the owner may; that one
-- sees no tenant's rows. The second removes rows across tenants.

CREATE FUNCTION ao_make_event_days(p_ahead integer) RETURNS integer
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
    PERFORM pg_advisory_xact_lock(174487302);
    FOR v_day IN SELECT ao_today() + n FROM generate_series(0, p_ahead) AS n LOOP
        CONTINUE WHEN EXISTS (
            SELECT FROM ao_event_partitions() p
            WHERE p.lower <= ao_day_start(v_day) AND p.upper > ao_day_start(v_day)
        );
        v_name := 'run_events_' || to_char(v_day, 'YYYYMMDD');
        EXECUTE format('CREATE TABLE %I (LIKE run_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_name);
        IF pg_relation_size('run_events_default') > 0 THEN
            -- The day has begun without a partition: what it has so far moves. The lock of the first statement keeps
            -- everybody out until all of this is committed.
            ALTER TABLE run_events_default NO FORCE ROW LEVEL SECURITY;
            EXECUTE format(
                $m$WITH moved AS (DELETE FROM run_events_default WHERE run_id >= %L AND run_id < %L RETURNING *)
                   INSERT INTO %I SELECT * FROM moved$m$, ao_day_start(v_day), ao_day_start(v_day + 1), v_name);
            ALTER TABLE run_events_default FORCE ROW LEVEL SECURITY;
        END IF;
        PERFORM ao_guard_events(v_name);
        -- Unlike CREATE … PARTITION OF, this does not keep readers and writers of the other days waiting.
        EXECUTE format('ALTER TABLE run_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       v_name, ao_day_start(v_day), ao_day_start(v_day + 1));
        v_made := v_made + 1;
    END LOOP;
    RETURN v_made;
END
$$;

CREATE FUNCTION ao_forget_runs(p_days integer, p_limit integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_now     timestamptz := ao_now();
    v_day     date := ao_today() - p_days;
    v_tenants text[];
    v_hashes  bytea[];
    v_count   integer;
BEGIN
    -- Whatever the caller believes: idempotency keys are promised for this long.
    IF p_days < 7 THEN
        RAISE EXCEPTION 'runs are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH gone AS MATERIALIZED (
        SELECT r.tenant_id, r.id
        FROM runs r
        WHERE r.id < ao_day_start(v_day) AND r.created_at < CAST(v_day AS timestamp) AT TIME ZONE 'UTC'
          AND r.status IN ('succeeded', 'failed', 'cancelled') AND r.finished_at < v_now - interval '7 days'
        ORDER BY r.id
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    ),
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

CREATE FUNCTION ao_runs_exist(p_lower uuid, p_upper uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
    RETURN EXISTS (SELECT FROM runs WHERE id >= p_lower AND id < p_upper);

CREATE FUNCTION ao_drop_event_days(p_days integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    v_name    text;
    v_dropped integer := 0;
BEGIN
    IF p_days < 7 THEN
        RAISE EXCEPTION 'events are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(174487302);
    FOR v_name IN
        SELECT p.name FROM ao_event_partitions() p
        WHERE p.upper <= ao_day_start(ao_today() - p_days) AND NOT ao_runs_exist(p.lower, p.upper)
        ORDER BY p.upper
    LOOP
        EXECUTE format('DROP TABLE %I', v_name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END
$$;

GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT, UPDATE, DELETE ON runs TO ao_def;
GRANT SELECT, DELETE ON idempotency, steps, run_events_default, blob_refs TO ao_def;
GRANT SELECT, UPDATE, DELETE ON blobs TO ao_def;
DO $$
DECLARE
    signature regprocedure;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'ao_make_event_days(integer)', 'ao_forget_runs(integer, integer)', 'ao_drop_event_days(integer)'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO ao_app', signature);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION ao_runs_exist(uuid, uuid) FROM PUBLIC;
ALTER FUNCTION ao_forget_runs(integer, integer) OWNER TO ao_def;
ALTER FUNCTION ao_runs_exist(uuid, uuid) OWNER TO ao_def;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
-- By its new owner: what the old one granted to itself went with the ownership.
SET LOCAL ROLE ao_def;
GRANT EXECUTE ON FUNCTION ao_runs_exist(uuid, uuid) TO ao_owner;
RESET ROLE;

SELECT ao_make_event_days(7);
