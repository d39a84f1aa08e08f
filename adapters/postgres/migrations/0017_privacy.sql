-- Privacy: what must stay because of a court, how long what is kept at most, and the removal of all that is kept of one principal.

CREATE TABLE legal_holds (
    tenant_id   text        NOT NULL,
    id          uuid        NOT NULL DEFAULT uuidv7(),
    -- A principal; NULL: all of the tenant.
    subject     text CHECK (length(subject) BETWEEN 1 AND 255),
    reason      text        NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    placed_by   text        NOT NULL,
    placed_at   timestamptz NOT NULL DEFAULT ao_now(),
    released_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX legal_holds_in_force ON legal_holds (tenant_id, subject) WHERE released_at IS NULL;

-- What is left of a subject that was erased: a digest of who it was, how far it got, and how much went.
CREATE TABLE subject_tombstones (
    tenant_id    text        NOT NULL,
    name         text        NOT NULL CHECK (name ~ '^erased:[0-9a-f]{64}$'),
    status       text        NOT NULL CHECK (status IN ('erasing', 'erased')),
    -- What comes next, and after which row of it.
    stage        text        NOT NULL,
    after        text,
    counts       json        NOT NULL,
    begun_at     timestamptz NOT NULL DEFAULT ao_now(),
    erased_at    timestamptz,
    actor_tenant text        NOT NULL,
    principal    text        NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

-- What a tenant keeps for less time than the node does, by class.
CREATE TABLE retention_rules (
    tenant_id   text        NOT NULL,
    class       text        NOT NULL CHECK (class IN ('runs', 'requests', 'texts', 'usage', 'memory', 'audit')),
    days        integer     NOT NULL CHECK (days BETWEEN 1 AND 3650),
    -- What is older than this was looked at; for rows that stay.
    swept_until timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (tenant_id, class)
);

SELECT ao_guard_events(name) FROM unnest(ARRAY['legal_holds', 'subject_tombstones', 'retention_rules']) AS name;
GRANT SELECT, INSERT, UPDATE (released_at) ON legal_holds TO ao_control;
GRANT SELECT, INSERT, UPDATE ON subject_tombstones TO ao_control;
GRANT SELECT, INSERT, UPDATE, DELETE ON retention_rules TO ao_control;
GRANT SELECT ON legal_holds, subject_tombstones, retention_rules TO ao_admin, ao_def;
GRANT DELETE ON legal_holds TO ao_def;
GRANT UPDATE (swept_until) ON retention_rules TO ao_def;

-- In whose name it was written. '': before this, or by nobody that is known.
ALTER TABLE memory_items ADD COLUMN principal text NOT NULL DEFAULT '';
ALTER TABLE model_replies ADD COLUMN principal text NOT NULL DEFAULT '';
ALTER TABLE request_contents ADD COLUMN principal text NOT NULL DEFAULT '';

GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT, DELETE ON run_events, request_records, usage_events, api_keys, memory_items, memory_words, model_replies,
    queue_messages, principals TO ao_def;
GRANT INSERT ON principals TO ao_def;
GRANT UPDATE (principal, correlation_id, model_asked) ON request_records TO ao_def;
GRANT UPDATE (principal, session, correlation_id) ON usage_events TO ao_def;

-- `ports.privacy.erased_name` says the same.
CREATE FUNCTION ao_erased_name(p_tenant text, p_subject text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 'erased:' || encode(sha256(convert_to(p_tenant || ' ' || p_subject, 'UTF8')), 'hex');

-- Whose principal this is, by the name that it has in the tenant it acts in. None of a tenant's own has such a name.
CREATE FUNCTION ao_actor(p_tenant text, p_principal text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_principal ~ '^tnt_[a-z0-9_-]+/' THEN split_part(p_principal, '/', 1) ELSE p_tenant END;
REVOKE ALL ON FUNCTION ao_actor(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_actor(text, text) TO ao_app, ao_def;

-- The least id that something made at this moment can have (UUIDv7).
CREATE FUNCTION ao_first_id(p_at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CAST(rpad(lpad(to_hex(CAST(floor(extract(epoch FROM p_at) * 1000) AS bigint)), 12, '0'), 32, '0') AS uuid);

-- Whether it must stay. Of what nobody knows whose it is, whatever is held in the tenant may be part.
CREATE FUNCTION ao_held(p_tenant text, p_subject text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
    RETURN EXISTS (
        SELECT FROM legal_holds h
        WHERE h.tenant_id = p_tenant AND h.released_at IS NULL
          AND (h.subject IS NULL OR h.subject = p_subject OR coalesce(p_subject, '') = '')
    );

CREATE FUNCTION ao_holds_in_force(p_tenant text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
    RETURN EXISTS (SELECT FROM legal_holds h WHERE h.tenant_id = p_tenant AND h.released_at IS NULL);

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

-- As `ao_lock_holds`, of upkeep, which is of all tenants: steps of it share this, and whoever places a hold has it alone.
CREATE FUNCTION ao_share_holds() RETURNS void
    LANGUAGE sql VOLATILE SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT pg_advisory_xact_lock_shared(174487310);
END;

-- The tenant, when the subject's erasing has begun and nothing holds it.
CREATE FUNCTION ao_erasing(p_subject text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_bound_tenant();
BEGIN
    PERFORM ao_lock_holds(v_tenant);
    IF ao_held(v_tenant, p_subject) THEN
        RAISE EXCEPTION 'the subject is held' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF NOT EXISTS (
        SELECT FROM subject_tombstones x
        WHERE x.tenant_id = v_tenant AND x.name = ao_erased_name(v_tenant, p_subject) AND x.status = 'erasing'
    ) THEN
        RAISE EXCEPTION 'the subject was not marked for erasing' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN v_tenant;
END
$$;

-- Runs with all that hangs on them. Their bodies go where nobody else refers to them. With `p_events` their events go at once,
-- and not with their day.
CREATE FUNCTION ao_remove_runs(p_tenants text[], p_runs uuid[], p_events boolean) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenants text[];
    v_hashes  bytea[];
    v_count   integer;
BEGIN
    IF p_events THEN
        DELETE FROM run_events e USING unnest(p_tenants, p_runs) AS g (tenant_id, id)
        WHERE e.tenant_id = g.tenant_id AND e.run_id = g.id;
    END IF;
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
    -- Locked first and looked at again afterwards: somebody may refer to a body at this moment. Whoever else removes what
    -- referred to it may look before this is done: who is last takes the body, so nobody passes a lock by.
    SELECT array_agg(l.tenant_id), array_agg(l.sha256) INTO v_tenants, v_hashes
    FROM (
        SELECT b.tenant_id, b.sha256
        FROM blobs b
        WHERE (b.tenant_id, b.sha256) IN (SELECT * FROM unnest(v_tenants, v_hashes))
        ORDER BY b.tenant_id, b.sha256
        FOR UPDATE
    ) l;
    DELETE FROM blobs b
    USING unnest(v_tenants, v_hashes) AS l (tenant_id, sha256)
    WHERE b.tenant_id = l.tenant_id AND b.sha256 = l.sha256
      AND NOT EXISTS (SELECT FROM blob_refs x WHERE x.tenant_id = b.tenant_id AND x.sha256 = b.sha256);
    RETURN v_count;
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

CREATE FUNCTION ao_runs_since(p_subject text, p_at timestamptz) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
    RETURN EXISTS (
        SELECT FROM runs r
        WHERE r.tenant_id = ao_bound_tenant() AND r.id >= ao_first_id(p_at) AND r.requester ->> 'principal' = p_subject
    );

-- Each of the following looks at the tenant's next rows after one, and removes those of the subject. `last`: where to go on;
-- NULL: these were all.

CREATE FUNCTION ao_erase_runs(p_subject text, p_after uuid, p_limit integer, OUT removed integer, OUT last uuid)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_erasing(p_subject);
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
    removed := CASE WHEN v_runs IS NULL THEN 0
                    ELSE ao_remove_runs(array_fill(v_tenant, ARRAY[cardinality(v_runs)]), v_runs, true) END;
    IF v_seen < p_limit THEN
        last := NULL;
    END IF;
END
$$;

-- Requests go on to count, and are nobody's.
CREATE FUNCTION ao_erase_requests(p_subject text, p_after uuid, p_limit integer, OUT removed integer, OUT last uuid)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_erasing(p_subject);
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
    -- Texts from before this migration don't say whose they are: they go by their request.
    DELETE FROM request_contents c WHERE c.tenant_id = v_tenant AND c.id = ANY (v_theirs);
    -- What a caller chose is the caller's: which model it asked for is a text of its own.
    UPDATE request_records r SET principal = 'erased', correlation_id = '', model_asked = r.model
    WHERE r.tenant_id = v_tenant AND r.id = ANY (v_theirs);
    GET DIAGNOSTICS removed = ROW_COUNT;
    IF v_seen < p_limit THEN
        last := NULL;
    END IF;
END
$$;

CREATE FUNCTION ao_erase_usage(p_subject text, p_after text, p_limit integer, OUT removed integer, OUT last text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_erasing(p_subject);
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
    UPDATE usage_events u SET principal = 'erased', session = '', correlation_id = ''
    WHERE u.tenant_id = v_tenant AND u.request_id > p_after AND u.request_id <= last AND u.principal = p_subject;
    GET DIAGNOSTICS removed = ROW_COUNT;
    IF v_seen < p_limit THEN
        last := NULL;
    END IF;
END
$$;

-- What has few rows, or none that lie in the order of time: as many as there are, up to the limit.
CREATE FUNCTION ao_erase_rest(p_stage text, p_subject text, p_limit integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_erasing(p_subject);
    v_whose  text := CASE p_stage WHEN 'queue_messages' THEN 'y.requester ->> ''principal''' ELSE 'y.principal' END;
    v_count  integer;
BEGIN
    IF p_stage NOT IN ('request_contents', 'model_replies', 'queue_messages', 'memory_items', 'api_keys') THEN
        RAISE EXCEPTION 'nothing is erased by that name' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format(
        'DELETE FROM %1$I x WHERE x.ctid = ANY (ARRAY('
        'SELECT y.ctid FROM %1$I y WHERE y.tenant_id = $1 AND %2$s = $2 LIMIT $3))', p_stage, v_whose
    ) USING v_tenant, p_subject, p_limit;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- The end: nothing names the subject any more. Under the name of its tombstone it stays barred.
CREATE FUNCTION ao_end_erasing(p_subject text) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := ao_erasing(p_subject);
BEGIN
    DELETE FROM principals p WHERE p.tenant_id = v_tenant AND p.id = p_subject;
    INSERT INTO principals (tenant_id, id, status) VALUES (v_tenant, ao_erased_name(v_tenant, p_subject), 'disabled')
        ON CONFLICT (tenant_id, id) DO NOTHING;
    DELETE FROM legal_holds h WHERE h.tenant_id = v_tenant AND h.subject = p_subject;
END
$$;

SET LOCAL ROLE ao_def;
-- As before, and a key of whoever was erased is barred by the name of the tombstone, unless its holder was put again.
CREATE OR REPLACE FUNCTION ao_find_key_holder(p_id uuid) RETURNS TABLE (
    tenant_id text, id uuid, namespace text, principal text, scopes json, roles json, label text, secret_sha256 bytea,
    created_at timestamptz, expires_at timestamptz, tenant_status text,
    holder_status text, holder_roles json, holder_scopes json, holder_created_at timestamptz
)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT k.tenant_id, k.id, k.namespace, k.principal, k.scopes, k.roles, k.label, k.secret_sha256, k.created_at,
           k.expires_at, t.status, p.status, p.roles, p.scopes, p.created_at
    FROM api_keys k
    JOIN tenants t ON t.tenant_id = k.tenant_id
    LEFT JOIN LATERAL (
        SELECT x.* FROM principals x
        WHERE x.tenant_id = k.tenant_id AND x.id IN (k.principal, ao_erased_name(k.tenant_id, k.principal))
        ORDER BY x.id <> k.principal
        LIMIT 1
    ) p ON true
    WHERE k.id = p_id AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > ao_now());
END;

-- Upkeep, as before but for what is held.

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
    RETURN CASE WHEN v_runs IS NULL THEN 0 ELSE ao_remove_runs(v_tenants, v_runs, false) END;
END
$$;

CREATE OR REPLACE FUNCTION ao_forget_requests(p_days integer, p_limit integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_count integer;
    v_most  integer;
BEGIN
    PERFORM ao_share_holds();
    IF p_days < 7 THEN
        RAISE EXCEPTION 'requests are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH due AS MATERIALIZED (
        SELECT c.tenant_id, c.id FROM request_contents c
        WHERE c.keep_until <= (SELECT ao_now()) AND NOT ao_held(c.tenant_id, c.principal)
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
        SELECT r.tenant_id, r.id FROM request_records_default r
        WHERE r.id < ao_day_start(ao_today() - p_days) AND NOT ao_held(r.tenant_id, r.principal)
        ORDER BY r.id LIMIT p_limit
    )
    DELETE FROM request_records_default r USING due WHERE r.tenant_id = due.tenant_id AND r.id = due.id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN greatest(v_most, v_count);
END
$$;

-- An entry goes, as before, by its chain and with an entry that tells of it; what is held stays, and so does what tells of
-- erasing. One principal's are those that say what it did, and not its namesake of another tenant, and those that say what was
-- done to it.
CREATE OR REPLACE FUNCTION ao_audit_erase(
    p_first bigint, p_last bigint, p_namespace text, p_actor_tenant text, p_principal text, p_correlation_id text, p_subject text
) RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    whose   text := nullif(current_setting('app.tenant_id', true), '');
    numbers bigint[];
BEGIN
    PERFORM ao_lock_holds(whose);
    WITH gone AS (
        DELETE FROM audit_log a USING audit_chain c
        WHERE c.tenant_id = whose AND c.seq BETWEEN p_first AND p_last AND a.tenant_id = c.tenant_id AND a.id = c.entry
          AND a.action NOT IN ('audit.erase', 'subject.erase', 'subject.erased', 'tenant.erase', 'tenant.erased')
          AND (p_subject IS NULL OR a.subject = p_subject
               OR a.principal = p_subject AND a.actor_tenant = ao_actor(whose, p_subject))
          AND NOT ao_held(whose, a.principal) AND NOT ao_held(whose, a.subject)
        RETURNING c.seq
    )
    SELECT array_agg(gone.seq) INTO numbers FROM gone;
    RETURN ao_audit_note_erased(whose, numbers, p_namespace, p_actor_tenant, p_principal, p_correlation_id);
END
$$;

CREATE OR REPLACE FUNCTION ao_erase_rows(p_tenant text, p_limit integer) RETURNS bigint
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
    PERFORM ao_lock_holds(p_tenant);
    IF ao_holds_in_force(p_tenant) THEN
        RAISE EXCEPTION 'something of the tenant is held' USING ERRCODE = 'object_not_in_prerequisite_state';
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
RESET ROLE;

-- Whether somebody holds something of a day's requests, which then is not dropped as a whole.
CREATE FUNCTION ao_day_held(p_lower uuid, p_upper uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
    RETURN EXISTS (
        SELECT FROM legal_holds h
        JOIN request_records r ON r.tenant_id = h.tenant_id AND r.id >= p_lower AND r.id < p_upper
        WHERE h.released_at IS NULL AND (h.subject IS NULL OR h.subject = r.principal)
    );

-- Of such days, what nobody holds goes row by row: at most so many.
CREATE FUNCTION ao_thin_request_days(p_days integer, p_limit integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_day   record;
    v_gone  integer;
    v_total integer := 0;
BEGIN
    PERFORM ao_share_holds();
    IF p_days < 7 THEN
        RAISE EXCEPTION 'requests are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR v_day IN
        SELECT p.lower, p.upper FROM ao_request_partitions() p
        WHERE p.upper <= ao_day_start(ao_today() - p_days) ORDER BY p.upper
    LOOP
        CONTINUE WHEN NOT ao_day_held(v_day.lower, v_day.upper);
        DELETE FROM request_records x USING (
            SELECT r.tenant_id, r.id FROM request_records r
            WHERE r.id >= v_day.lower AND r.id < v_day.upper AND NOT ao_held(r.tenant_id, r.principal)
            LIMIT p_limit - v_total
        ) due
        WHERE x.tenant_id = due.tenant_id AND x.id = due.id AND x.id >= v_day.lower AND x.id < v_day.upper;
        GET DIAGNOSTICS v_gone = ROW_COUNT;
        v_total := v_total + v_gone;
        EXIT WHEN v_total >= p_limit;
    END LOOP;
    RETURN v_total;
END
$$;

CREATE OR REPLACE FUNCTION ao_drop_request_days(p_days integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    v_day     record;
    v_dropped integer := 0;
BEGIN
    PERFORM ao_share_holds();
    IF p_days < 7 THEN
        RAISE EXCEPTION 'requests are kept for at least 7 days, not %', p_days USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(174487303);
    FOR v_day IN
        SELECT p.name, p.lower, p.upper FROM ao_request_partitions() p
        WHERE p.upper <= ao_day_start(ao_today() - p_days) ORDER BY p.upper
    LOOP
        CONTINUE WHEN ao_day_held(v_day.lower, v_day.upper);
        EXECUTE format('DROP TABLE %I', v_day.name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END
$$;

-- What tenants keep for less time than the node: at most so many rows of each rule. `runs` were removed; `most` is how many
-- rows the busiest rule had.
CREATE FUNCTION ao_retain(p_limit integer, OUT runs integer, OUT most integer)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_rule  retention_rules;
    v_day   date;
    v_until timestamptz;
    v_count integer;
    v_runs  uuid[];
BEGIN
    PERFORM ao_share_holds();
    runs := 0;
    most := 0;
    FOR v_rule IN SELECT * FROM retention_rules r ORDER BY r.tenant_id, r.class LOOP
        v_day := ao_today() - v_rule.days;
        v_until := CAST(v_day AS timestamp) AT TIME ZONE 'UTC';
        CASE v_rule.class
        WHEN 'runs' THEN
            SELECT array_agg(g.id) INTO v_runs FROM (
                SELECT r.id FROM runs r
                WHERE r.tenant_id = v_rule.tenant_id AND r.id < ao_day_start(v_day) AND r.created_at < v_until
                  AND r.status IN ('succeeded', 'failed', 'cancelled') AND r.finished_at < ao_now() - interval '7 days'
                  AND NOT ao_held(r.tenant_id, r.requester ->> 'principal')
                ORDER BY r.id LIMIT p_limit FOR UPDATE SKIP LOCKED
            ) g;
            v_count := CASE WHEN v_runs IS NULL THEN 0 ELSE
                ao_remove_runs(array_fill(v_rule.tenant_id, ARRAY[cardinality(v_runs)]), v_runs, true) END;
            runs := runs + v_count;
        WHEN 'requests' THEN
            DELETE FROM request_records x USING (
                SELECT r.tenant_id, r.id FROM request_records r
                WHERE r.tenant_id = v_rule.tenant_id AND r.id < ao_day_start(v_day) AND NOT ao_held(r.tenant_id, r.principal)
                ORDER BY r.id LIMIT p_limit
            ) due
            WHERE x.tenant_id = due.tenant_id AND x.id = due.id AND x.id < ao_day_start(v_day);
            GET DIAGNOSTICS v_count = ROW_COUNT;
        WHEN 'texts' THEN
            DELETE FROM request_contents x USING (
                SELECT c.tenant_id, c.id FROM request_contents c
                WHERE c.tenant_id = v_rule.tenant_id AND c.id < ao_day_start(v_day) AND NOT ao_held(c.tenant_id, c.principal)
                ORDER BY c.id LIMIT p_limit
            ) due
            WHERE x.tenant_id = due.tenant_id AND x.id = due.id;
            GET DIAGNOSTICS v_count = ROW_COUNT;
        WHEN 'memory' THEN
            DELETE FROM memory_items x USING (
                SELECT m.tenant_id, m.namespace, m.key FROM memory_items m
                WHERE m.tenant_id = v_rule.tenant_id AND m.updated_at < v_until AND NOT ao_held(m.tenant_id, m.principal)
                LIMIT p_limit
            ) due
            WHERE x.tenant_id = due.tenant_id AND x.namespace = due.namespace AND x.key = due.key AND x.updated_at < v_until;
            GET DIAGNOSTICS v_count = ROW_COUNT;
        WHEN 'usage' THEN
            -- Figures stay: whose they were goes.
            UPDATE usage_events x SET principal = 'erased', session = '', correlation_id = ''
            FROM (
                SELECT u.tenant_id, u.request_id, u.attempt FROM usage_events u
                WHERE u.tenant_id = v_rule.tenant_id AND u.at >= v_rule.swept_until AND u.at < v_until
                  AND (u.principal NOT IN ('', 'erased') OR u.session <> '' OR u.correlation_id <> '')
                  AND NOT ao_held(u.tenant_id, u.principal)
                ORDER BY u.at LIMIT p_limit
            ) due
            WHERE x.tenant_id = due.tenant_id AND x.request_id = due.request_id AND x.attempt = due.attempt;
            GET DIAGNOSTICS v_count = ROW_COUNT;
        ELSE
            -- Who else's entries a held one's case needs, nobody knows.
            v_count := CASE WHEN ao_holds_in_force(v_rule.tenant_id) THEN 0
                            ELSE ao_audit_forget(v_rule.tenant_id, v_until, p_limit) END;
        END CASE;
        IF v_rule.class = 'usage' AND v_count < p_limit THEN
            UPDATE retention_rules r SET swept_until = v_until
            WHERE r.tenant_id = v_rule.tenant_id AND r.class = v_rule.class AND r.days = v_rule.days AND v_until > r.swept_until;
        END IF;
        most := greatest(most, v_count);
    END LOOP;
END
$$;

-- As `ao_audit_erase`, by age and for no caller.
CREATE FUNCTION ao_audit_forget(p_tenant text, p_until timestamptz, p_limit integer) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_numbers bigint[];
BEGIN
    WITH due AS MATERIALIZED (
        SELECT a.tenant_id, a.id, c.seq FROM audit_log a JOIN audit_chain c ON c.tenant_id = a.tenant_id AND c.entry = a.id
        WHERE a.tenant_id = p_tenant AND a.id < ao_first_id(p_until) AND a.at < p_until
          AND a.action NOT IN ('audit.erase', 'subject.erase', 'subject.erased', 'tenant.erase', 'tenant.erased')
        ORDER BY a.id LIMIT p_limit
    ),
    gone AS (
        DELETE FROM audit_log a USING due WHERE a.tenant_id = due.tenant_id AND a.id = due.id RETURNING due.seq
    )
    SELECT array_agg(gone.seq) INTO v_numbers FROM gone;
    RETURN ao_audit_note_erased(p_tenant, v_numbers, 'default', 'tnt_system', 'svc_upkeep', '');
END
$$;

DO $$
DECLARE
    signature regprocedure;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'ao_held(text, text)', 'ao_holds_in_force(text)', 'ao_erasing(text)', 'ao_remove_runs(text[], uuid[], boolean)',
        'ao_open_runs_of(text)', 'ao_runs_since(text, timestamptz)', 'ao_erase_runs(text, uuid, integer)',
        'ao_erase_requests(text, uuid, integer)', 'ao_erase_usage(text, text, integer)',
        'ao_erase_rest(text, text, integer)', 'ao_end_erasing(text)',
        'ao_day_held(uuid, uuid)', 'ao_thin_request_days(integer, integer)',
        'ao_retain(integer)',
        'ao_audit_forget(text, timestamptz, integer)'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('ALTER FUNCTION %s OWNER TO ao_def', signature);
    END LOOP;
END
$$;
SET LOCAL ROLE ao_def;
GRANT EXECUTE ON FUNCTION ao_held(text, text), ao_holds_in_force(text), ao_open_runs_of(text),
    ao_runs_since(text, timestamptz), ao_erase_runs(text, uuid, integer), ao_erase_requests(text, uuid, integer),
    ao_erase_usage(text, text, integer), ao_erase_rest(text, text, integer), ao_end_erasing(text) TO ao_control;
GRANT EXECUTE ON FUNCTION ao_day_held(uuid, uuid) TO ao_owner;
GRANT EXECUTE ON FUNCTION ao_retain(integer), ao_thin_request_days(integer, integer) TO ao_app;
RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
