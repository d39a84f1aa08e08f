-- The order of priority, once its indexes are there.

GRANT CREATE ON SCHEMA agentos TO ao_def;
SET LOCAL ROLE ao_def;

-- Start-time fair queueing: whoever's time is least is served, the most urgent message first and of equal ones the
-- oldest, and pays cost / weight. A batch is split
-- as if its messages were leased one by one. Tenants without room for another run are passed over.
--
-- Nothing is locked while choosing, and messages only past those that others are taking. The turns are charged at the end, in
-- one order; what is locked after that is not waited for. So leases neither block nor deadlock each other.
CREATE OR REPLACE FUNCTION ao_queue_lease_in_turn(p_limit integer, p_duration interval, p_active integer)
    RETURNS SETOF queue_messages
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp AS $$
DECLARE
    v_now     timestamptz := ao_now();
    v_left    integer := p_limit;
    v_taken   integer;
    -- Of one look: how many were wanted, how many were found, and how many of these may have more.
    v_most    integer;
    v_seen    integer;
    v_open    integer;
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
            v_most := least(v_left, 64);
            v_seen := 0;
            v_open := 0;
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
                v_seen := v_seen + 1;
                IF v_turn.room <= 0 THEN
                    IF v_turn.tenant_id <> ALL (v_charged) THEN
                        v_full := v_full || v_turn.tenant_id;
                    END IF;
                    v_done := v_done || v_turn.tenant_id;
                    CONTINUE;
                END IF;
                IF v_turn.share = 0 THEN
                    v_open := v_open + 1;
                    CONTINUE;
                END IF;
                RETURN QUERY
                    WITH picked AS MATERIALIZED (
                        SELECT m.id
                        FROM queue_messages m
                        WHERE m.tenant_id = v_turn.tenant_id AND m.visible_at <= v_now
                        ORDER BY m.priority DESC, m.id
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
                ELSE
                    v_open := v_open + 1;
                END IF;
            END LOOP;
            -- Where all were found who are awake, and none has more, another look would find nobody.
            EXIT WHEN v_left <= 0 OR v_seen < v_most AND v_open = 0 OR v_seen = 0 OR cardinality(v_empty) >= v_many;
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

-- As before, but in the places of a tenant's queued runs those of its queued runs that come first.
CREATE OR REPLACE FUNCTION ao_orphans_with_room(p_queued_for interval, p_limit integer, p_active integer)
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
    ),
    oldest AS MATERIALIZED (
        SELECT r.tenant_id, r.id, r.requester, r.status = 'queued' AS queued
        FROM runs r, t
        WHERE r.status IN ('queued', 'running')
          AND CASE r.status
              WHEN 'queued' THEN r.queued_at < t.now - p_queued_for
                  AND r.tenant_id NOT IN (SELECT f.tenant_id FROM full_tenants f)
              ELSE NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = r.worker_id AND w.lease_until > t.now)
          END
        ORDER BY r.id
        LIMIT p_limit
    ),
    places AS MATERIALIZED (
        SELECT o.tenant_id, o.id, row_number() OVER (PARTITION BY o.tenant_id ORDER BY o.id) AS k
        FROM oldest o
        WHERE o.queued
    ),
    urgent AS MATERIALIZED (
        SELECT c.tenant_id, u.id, u.requester,
               row_number() OVER (PARTITION BY c.tenant_id ORDER BY u.priority DESC, u.id) AS k
        FROM t, (SELECT p.tenant_id, count(*) AS many FROM places p GROUP BY p.tenant_id) c,
             LATERAL (
                 SELECT q.id, q.requester, q.priority
                 FROM runs q
                 WHERE q.tenant_id = c.tenant_id AND q.status = 'queued' AND q.queued_at < t.now - p_queued_for
                 ORDER BY q.priority DESC, q.id
                 LIMIT c.many
             ) u
    )
    SELECT named.id, named.requester
    FROM (
        SELECT o.id AS place, o.id, o.requester FROM oldest o WHERE NOT o.queued
        UNION ALL
        SELECT p.id, u.id, u.requester FROM places p JOIN urgent u ON u.tenant_id = p.tenant_id AND u.k = p.k
    ) named
    ORDER BY named.place;
END;

-- As before, but only who waits for children is woken by their end.
CREATE OR REPLACE FUNCTION ao_adrift(p_limit integer) RETURNS TABLE (id uuid, requester json, due text)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now)
    SELECT r.id, r.requester, 'wake'
    FROM runs r, t
    WHERE r.status = 'waiting'
      AND (
          r.cancel_requested_at IS NOT NULL
          OR r.deadline_at <= t.now
          OR r.waits_for = 'child' AND NOT EXISTS (
              SELECT FROM runs c
              WHERE c.tenant_id = r.tenant_id AND c.parent_id = r.id AND c.status NOT IN ('succeeded', 'failed', 'cancelled')
          )
      )
    UNION ALL
    SELECT r.id, r.requester, 'cancel'
    FROM runs r
    JOIN runs p ON p.tenant_id = r.tenant_id AND p.id = r.parent_id
    WHERE r.parent_id IS NOT NULL AND r.status IN ('queued', 'running', 'waiting', 'needs_operator')
      AND r.cancel_requested_at IS NULL AND p.status IN ('succeeded', 'failed', 'cancelled')
    ORDER BY 1
    LIMIT p_limit;
END;

RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
