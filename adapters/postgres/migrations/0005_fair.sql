-- Fairness and admission: what keeps a tenant within its entitlements and lets tenants take turns.
--
-- Nothing here is one row per tenant that every run of it must lock until its commit. What is counted exactly is split into
-- rows of which a transaction needs one: a place for each run that may be active, and stripes of a rate and of a backlog.

-- A place for each run that a tenant may have running. A claim takes a free one past those that others are just taking, so
-- claims of one tenant don't wait for each other, and there can't be more running than places.
CREATE TABLE run_slots (
    tenant_id text    NOT NULL,
    n         integer NOT NULL CHECK (n > 0),
    -- Who is in it. NULL: free.
    run_id    uuid,
    PRIMARY KEY (tenant_id, n)
) WITH (fillfactor = 50);

-- The rate of creations, as token buckets. A bucket holds a minute's worth: it is empty when it is used up to a minute ahead.
CREATE TABLE run_rates (
    tenant_id  text        NOT NULL,
    stripe     smallint    NOT NULL,
    used_until timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, stripe)
) WITH (fillfactor = 50);

-- How many runs are queued.
CREATE TABLE run_backlogs (
    tenant_id text     NOT NULL,
    stripe    smallint NOT NULL,
    queued    integer  NOT NULL,
    PRIMARY KEY (tenant_id, stripe)
) WITH (fillfactor = 50);

-- The place a running run has, and the stripe it is counted in while it is queued; NULL for runs from before this migration.
ALTER TABLE runs ADD COLUMN slot integer, ADD COLUMN backlog_stripe smallint;

-- Tenants taking turns. `vtime` is a tenant's own time: it passes faster the more it is served and the less its weight.
CREATE TABLE queue_turns (
    tenant_id text        PRIMARY KEY,
    vtime     bigint      NOT NULL,
    -- When its messages are to be looked at. 'infinity': when something is enqueued.
    next_at   timestamptz NOT NULL,
    served_at timestamptz NOT NULL,
    -- It has as many runs running as it may; the end of one of them is the time to look.
    parked    boolean     NOT NULL DEFAULT false
) WITH (fillfactor = 50);
CREATE INDEX queue_turns_by_vtime ON queue_turns (vtime) WHERE next_at < 'infinity';
-- The time that has come: of the tenant served last. Tenants that come back start there, so that nobody saves up turns.
-- A sequence, because it is written by every lease and must not make leases wait for each other.
CREATE SEQUENCE queue_vtime AS bigint MINVALUE 0 START 0;

INSERT INTO queue_turns (tenant_id, vtime, next_at, served_at)
SELECT DISTINCT m.tenant_id, 0, ao_now(), ao_now() FROM queue_messages m;

-- Messages are found by tenant now.
DROP INDEX queue_messages_by_age;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['run_slots', 'run_rates', 'run_backlogs', 'queue_turns'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            $p$CREATE POLICY own_tenant ON %I TO ao_app
               USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))
               WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))$p$, name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT, UPDATE ON run_slots, run_rates, run_backlogs, queue_turns TO ao_app;
GRANT SELECT ON queue_vtime TO ao_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON run_slots, run_rates, run_backlogs, queue_turns TO ao_admin;
GRANT SELECT ON queue_vtime TO ao_admin;
GRANT SELECT ON run_slots TO ao_def;
GRANT SELECT, UPDATE ON queue_turns, queue_vtime TO ao_def;

-- How a total is split: into up to 16 stripes of at least `p_each`. A small one stays whole, so that it is exact to the last
-- unit for somebody who comes alone as well.
CREATE FUNCTION ao_stripes(p_total integer, p_each integer) RETURNS TABLE (stripe smallint, share integer)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CAST(n AS smallint), p_total / many + CASE WHEN n < p_total % many THEN 1 ELSE 0 END
    FROM (SELECT least(16, greatest(1, p_total / p_each)) AS many) split, generate_series(0, many - 1) AS n;
END;

-- Takes tokens of the tenant's rate and places in its backlog, and gives the stripe of the places; NULL when one stripe has not
-- room enough for all, or somebody else was faster: then the caller rolls back, and nothing was taken. In this order, because
-- each statement waits for whoever has the row it needs. As the caller, so with the caller's row-level security.
CREATE FUNCTION ao_admit_runs(p_tenant text, p_per_minute integer, p_queued integer, p_count integer) RETURNS smallint
    LANGUAGE sql VOLATILE SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now),
    quota AS MATERIALIZED (
        SELECT coalesce(CAST(x.entitlements ->> 'runs_per_minute' AS integer), p_per_minute) AS per_minute,
               coalesce(CAST(x.entitlements ->> 'max_queued_runs' AS integer), p_queued) AS queued
        FROM t
        LEFT JOIN tenants x ON x.tenant_id = p_tenant
    ),
    bucket AS MATERIALIZED (
        SELECT s.stripe, s.step
        FROM quota,
             LATERAL (SELECT z.stripe, CAST(p_count AS bigint) * (60000000 / z.share) * interval '1 microsecond' AS step
                      FROM ao_stripes(quota.per_minute, 60) z) s
        LEFT JOIN run_rates b ON b.tenant_id = p_tenant AND b.stripe = s.stripe
        CROSS JOIN t
        WHERE coalesce(greatest(b.used_until, t.now), t.now) + s.step <= t.now + interval '1 minute'
        ORDER BY random()
        LIMIT 1
    ),
    paid AS (
        INSERT INTO run_rates AS b (tenant_id, stripe, used_until)
        SELECT p_tenant, bucket.stripe, t.now + bucket.step FROM bucket, t
        ON CONFLICT (tenant_id, stripe) DO UPDATE
        SET used_until = greatest(b.used_until, (SELECT t.now FROM t)) + (SELECT bucket.step FROM bucket)
        WHERE greatest(b.used_until, (SELECT t.now FROM t)) + (SELECT bucket.step FROM bucket)
              <= (SELECT t.now FROM t) + interval '1 minute'
        RETURNING b.stripe
    ),
    -- What is beyond the stripes' shares, since the limit was lowered or runs were handed back. No stripe gives away what
    -- that takes.
    spill AS MATERIALIZED (
        SELECT coalesce(sum(greatest(0, b.queued - coalesce(s.share, 0))), 0) AS queued
        FROM quota, LATERAL (SELECT z.stripe, z.queued FROM run_backlogs z WHERE z.tenant_id = p_tenant) b
        LEFT JOIN LATERAL ao_stripes(quota.queued, 100) s ON s.stripe = b.stripe
    ),
    lane AS MATERIALIZED (
        SELECT s.stripe, s.share - spill.queued AS share
        FROM paid, quota, spill, LATERAL ao_stripes(quota.queued, 100) s
        LEFT JOIN run_backlogs b ON b.tenant_id = p_tenant AND b.stripe = s.stripe
        WHERE coalesce(b.queued, 0) + p_count <= s.share - spill.queued
        ORDER BY random()
        LIMIT 1
    )
    INSERT INTO run_backlogs AS b (tenant_id, stripe, queued)
    SELECT p_tenant, lane.stripe, p_count FROM lane
    ON CONFLICT (tenant_id, stripe) DO UPDATE SET queued = b.queued + p_count
    WHERE b.queued + p_count <= (SELECT lane.share FROM lane)
    RETURNING b.stripe;
END;

-- Places and counts follow the run, whichever statement moves it.
CREATE FUNCTION ao_run_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF old.status = 'running' THEN
        UPDATE agentos.run_slots s SET run_id = NULL
        WHERE s.tenant_id = old.tenant_id AND s.n = old.slot AND s.run_id = old.id;
        UPDATE agentos.queue_turns q
        SET parked = false, next_at = agentos.ao_now(),
            vtime = greatest(q.vtime, (SELECT v.last_value FROM agentos.queue_vtime v))
        WHERE q.tenant_id = old.tenant_id AND q.parked;
    ELSIF old.status = 'queued' THEN
        UPDATE agentos.run_backlogs b SET queued = b.queued - 1
        WHERE b.tenant_id = old.tenant_id AND b.stripe = old.backlog_stripe;
    END IF;
    IF new.status = 'queued' THEN
        UPDATE agentos.run_backlogs b SET queued = b.queued + 1
        WHERE b.tenant_id = new.tenant_id AND b.stripe = new.backlog_stripe;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER run_moved AFTER UPDATE OF status ON runs FOR EACH ROW
    WHEN (old.status IS DISTINCT FROM new.status) EXECUTE FUNCTION ao_run_moved();

GRANT CREATE ON SCHEMA agentos TO ao_def;

-- Start-time fair queueing: whoever's time is least is served, oldest message first, and pays cost / weight. A batch is split
-- as if its messages were leased one by one. Tenants without room for another run are passed over.
--
-- Nothing is locked while choosing, and messages only past those that others are taking. The turns are charged at the end, in
-- one order; what is locked after that is not waited for. So leases neither block nor deadlock each other.
CREATE FUNCTION ao_queue_lease_in_turn(p_limit integer, p_duration interval, p_active integer)
    RETURNS SETOF queue_messages
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp AS $$
DECLARE
    v_now     timestamptz := ao_now();
    v_left    integer := p_limit;
    v_taken   integer;
    v_found   boolean;
    v_reached bigint := 0;
    v_done    text[] := '{}';
    v_empty   text[] := '{}';
    v_full    text[] := '{}';
    v_asleep  text[];
    -- So many who have nothing are sent to sleep before more are looked at: looking remembers them all.
    v_many    CONSTANT integer := 256;
    -- Served in this call, once per entry: who, with how many messages, at what cost.
    v_charged text[] := '{}';
    v_counts  integer[] := '{}';
    v_costs   bigint[] := '{}';
    v_turn    record;
BEGIN
    LOOP
        LOOP
            v_found := false;
            FOR v_turn IN
                WITH served AS MATERIALIZED (
                    SELECT c.tenant_id, sum(c.count) AS count, CAST(sum(c.cost) AS bigint) AS cost
                    FROM unnest(v_charged, v_counts, v_costs) AS c (tenant_id, count, cost)
                    GROUP BY c.tenant_id
                ),
                near AS MATERIALIZED (
                    SELECT q.tenant_id, q.vtime
                    FROM queue_turns q
                    WHERE q.next_at <= v_now AND q.next_at < 'infinity' AND q.tenant_id <> ALL (v_done)
                    ORDER BY q.vtime
                    LIMIT least(v_left, 64)
                ),
                entitled AS MATERIALIZED (
                    SELECT near.tenant_id, near.vtime + coalesce(served.cost, 0) AS vtime,
                           CAST(1000000 / coalesce(CAST(x.entitlements ->> 'weight' AS integer), 1) AS bigint) AS cost,
                           coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), p_active)
                           - coalesce(served.count, 0) - (
                               SELECT count(*) FROM run_slots s WHERE s.tenant_id = near.tenant_id AND s.run_id IS NOT NULL
                           ) AS room
                    FROM near
                    LEFT JOIN served ON served.tenant_id = near.tenant_id
                    LEFT JOIN tenants x ON x.tenant_id = near.tenant_id
                ),
                due AS (
                    SELECT e.tenant_id
                    FROM entitled e, generate_series(1, least(e.room, v_left)) AS k
                    ORDER BY e.vtime + (k - 1) * e.cost, e.tenant_id
                    LIMIT v_left
                )
                SELECT e.tenant_id, e.vtime, e.cost, e.room,
                       (SELECT count(*) FROM due WHERE due.tenant_id = e.tenant_id) AS share
                FROM entitled e
                ORDER BY e.vtime
            LOOP
                v_found := true;
                IF v_turn.room <= 0 THEN
                    IF v_turn.tenant_id <> ALL (v_charged) THEN
                        v_full := v_full || v_turn.tenant_id;
                    END IF;
                    v_done := v_done || v_turn.tenant_id;
                    CONTINUE;
                END IF;
                CONTINUE WHEN v_turn.share = 0;
                RETURN QUERY
                    WITH picked AS MATERIALIZED (
                        SELECT m.id
                        FROM queue_messages m
                        WHERE m.tenant_id = v_turn.tenant_id AND m.visible_at <= v_now
                        ORDER BY m.id
                        LIMIT v_turn.share
                        FOR UPDATE OF m SKIP LOCKED
                    )
                    UPDATE queue_messages m
                    SET lease = uuidv7(), visible_at = v_now + p_duration, attempt = m.attempt + 1
                    FROM picked
                    WHERE m.tenant_id = v_turn.tenant_id AND m.id = picked.id
                    RETURNING m.*;
                GET DIAGNOSTICS v_taken = ROW_COUNT;
                IF v_taken > 0 THEN
                    v_charged := v_charged || v_turn.tenant_id;
                    v_counts := v_counts || v_taken;
                    v_costs := v_costs || v_taken * v_turn.cost;
                    v_reached := greatest(v_reached, v_turn.vtime);
                    v_left := v_left - v_taken;
                ELSIF v_turn.tenant_id <> ALL (v_charged) THEN
                    v_empty := v_empty || v_turn.tenant_id;
                END IF;
                IF v_taken < v_turn.share THEN
                    v_done := v_done || v_turn.tenant_id;
                END IF;
            END LOOP;
            EXIT WHEN v_left <= 0 OR NOT v_found OR cardinality(v_empty) >= v_many;
        END LOOP;

        IF v_charged <> '{}' THEN
            PERFORM 1 FROM queue_turns q WHERE q.tenant_id = ANY (v_charged) ORDER BY q.tenant_id FOR NO KEY UPDATE;
            UPDATE queue_turns q SET vtime = q.vtime + c.cost, served_at = v_now
            FROM (
                SELECT u.tenant_id, CAST(sum(u.cost) AS bigint) AS cost
                FROM unnest(v_charged, v_costs) AS u (tenant_id, cost)
                GROUP BY u.tenant_id
            ) c
            WHERE q.tenant_id = c.tenant_id;
            PERFORM setval('queue_vtime', greatest(v_reached, v.last_value)) FROM queue_vtime v;
        END IF;

        -- Whoever is full is looked at when a run of it ends, and every second in case that went unnoticed.
        IF v_full <> '{}' THEN
            UPDATE queue_turns q SET next_at = v_now + interval '1 second', parked = true
            WHERE q.tenant_id IN (
                SELECT f.tenant_id FROM queue_turns f WHERE f.tenant_id = ANY (v_full) FOR NO KEY UPDATE SKIP LOCKED
            );
        END IF;

        -- Whoever has nothing now saves no turns up.
        IF v_empty <> '{}' THEN
            UPDATE queue_turns q SET vtime = (SELECT v.last_value FROM queue_vtime v)
            WHERE q.tenant_id IN (
                SELECT e.tenant_id FROM queue_turns e
                WHERE e.tenant_id = ANY (v_empty) AND e.vtime < (SELECT v.last_value FROM queue_vtime v)
                FOR NO KEY UPDATE SKIP LOCKED
            );
        END IF;

        -- Whoever had nothing for a while sleeps until something is enqueued, or a lease or delay ends. Not at once: under
        -- load the next message is near, and waking is a write that enqueues wait for. An enqueue holds a key lock: then
        -- there is something on its way and nobody goes to sleep; and who sleeps holds a lock that the enqueue waits for. The
        -- statement that looks comes after the one that locks, so it sees whatever was committed before.
        SELECT array_agg(l.tenant_id) INTO v_asleep
        FROM (
            SELECT q.tenant_id FROM queue_turns q
            WHERE q.tenant_id = ANY (v_empty) AND q.served_at < v_now - interval '100 milliseconds'
            FOR UPDATE SKIP LOCKED
        ) l;
        UPDATE queue_turns q
        SET next_at = coalesce(
            (SELECT min(m.visible_at) FROM queue_messages m WHERE m.tenant_id = q.tenant_id), 'infinity'
        )
        WHERE q.tenant_id = ANY (v_asleep);

        -- Behind so many may be one who has something. Not for ever: the next call goes on from here.
        EXIT WHEN v_left < p_limit OR cardinality(v_empty) < v_many OR v_asleep IS NULL
            OR ao_now() > v_now + interval '500 milliseconds';
        v_done := '{}';
        v_empty := '{}';
        v_full := '{}';
    END LOOP;
END
$$;

-- As before, without the queued runs of tenants that have as many running as they may: nobody could claim them.
CREATE FUNCTION ao_orphans_with_room(p_queued_for interval, p_limit integer, p_active integer)
    RETURNS TABLE (id uuid, requester json)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now),
    full_tenants AS MATERIALIZED (
        SELECT r.tenant_id
        FROM runs r
        LEFT JOIN tenants x ON x.tenant_id = r.tenant_id
        WHERE r.status = 'running'
        GROUP BY r.tenant_id, CAST(x.entitlements ->> 'max_active_runs' AS integer)
        HAVING count(*) >= coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), p_active)
    )
    SELECT r.id, r.requester
    FROM runs r, t
    WHERE r.status IN ('queued', 'running')
      AND CASE r.status
          WHEN 'queued' THEN r.queued_at < t.now - p_queued_for
              AND r.tenant_id NOT IN (SELECT f.tenant_id FROM full_tenants f)
          ELSE NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = r.worker_id AND w.lease_until > t.now)
      END
    ORDER BY r.id
    LIMIT p_limit;
END;

DROP FUNCTION ao_queue_lease(integer, interval);
DROP FUNCTION ao_orphans(interval, integer);

DO $$
DECLARE
    signature regprocedure;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'ao_queue_lease_in_turn(integer, interval, integer)', 'ao_orphans_with_room(interval, integer, integer)'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO ao_app', signature);
        EXECUTE format('ALTER FUNCTION %s OWNER TO ao_def', signature);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
