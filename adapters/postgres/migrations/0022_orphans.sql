-- A look for orphans reads what it names, not all that is open.

GRANT CREATE ON SCHEMA agentos TO ao_def;
SET LOCAL ROLE ao_def;

-- As before; but what is held is found among what is running, and what is queued among the longest queued, by an index. Only
-- where these are nearly all of tenants that have no room, whoever else has something queued is looked up, tenant by tenant.
CREATE OR REPLACE FUNCTION ao_orphans_with_room(p_queued_for interval, p_limit integer, p_active integer)
    RETURNS TABLE (id uuid, requester json)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp AS $$
DECLARE
    v_now     timestamptz := ao_now();
    v_before  timestamptz := v_now - p_queued_for;
    v_moved   text[];
    v_full    text[];
    v_tenants text[];
    v_queued  uuid[];
    v_seen    integer;
    -- So many of the longest queued are looked at before tenants are.
    v_front   CONSTANT integer := greatest(1000, p_limit);
BEGIN
    v_moved := ARRAY(SELECT m.tenant FROM tenant_moves m WHERE m.state <> 'leaving');
    v_full := ARRAY(
        SELECT r.tenant_id
        FROM runs r
        LEFT JOIN tenants x ON x.tenant_id = r.tenant_id
        WHERE r.status = 'running'
        GROUP BY r.tenant_id, CAST(x.entitlements ->> 'max_active_runs' AS integer)
        HAVING count(*) >= coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), p_active)
    );

    SELECT array_agg(f.tenant_id) FILTER (WHERE f.room), array_agg(f.id) FILTER (WHERE f.room), count(*)
    INTO v_tenants, v_queued, v_seen
    FROM (
        SELECT r.tenant_id, r.id, r.tenant_id <> ALL (v_full || v_moved) AS room FROM runs r
        WHERE r.status = 'queued' AND r.queued_at < v_before
        ORDER BY r.queued_at, r.id
        LIMIT CASE WHEN v_full || v_moved = '{}' THEN p_limit ELSE v_front END
    ) f;

    IF v_seen = v_front AND coalesce(cardinality(v_queued), 0) < p_limit THEN
        SELECT array_agg(f.tenant_id), array_agg(f.id) INTO v_tenants, v_queued
        FROM (
            WITH RECURSIVE waiting AS (
                (SELECT r.tenant_id FROM runs r WHERE r.status = 'queued' ORDER BY r.tenant_id LIMIT 1)
                UNION ALL
                SELECT (
                    SELECT r.tenant_id FROM runs r
                    WHERE r.status = 'queued' AND r.tenant_id > waiting.tenant_id
                    ORDER BY r.tenant_id
                    LIMIT 1
                )
                FROM waiting
                WHERE waiting.tenant_id IS NOT NULL
            )
            SELECT o.tenant_id, o.id
            FROM waiting, generate_series(0, 9) AS p (priority),
                 LATERAL (
                     SELECT r.tenant_id, r.id FROM runs r
                     WHERE r.tenant_id = waiting.tenant_id AND r.status = 'queued' AND r.priority = p.priority
                       AND r.queued_at < v_before
                     ORDER BY r.id
                     LIMIT p_limit
                 ) o
            WHERE waiting.tenant_id <> ALL (v_full || v_moved)
            ORDER BY o.id
            LIMIT p_limit
        ) f;
    END IF;

    RETURN QUERY
        WITH oldest AS MATERIALIZED (
            SELECT e.tenant_id, e.id, e.queued
            FROM (
                SELECT u.tenant_id, u.id, true AS queued FROM unnest(v_tenants, v_queued) AS u (tenant_id, id)
                UNION ALL
                SELECT r.tenant_id, r.id, false FROM runs r
                WHERE r.status = 'running' AND r.tenant_id <> ALL (v_moved)
                  AND NOT EXISTS (SELECT FROM workers w WHERE w.id = r.worker_id AND w.lease_until > v_now)
            ) e
            ORDER BY e.id
            LIMIT p_limit
        ),
        places AS MATERIALIZED (
            SELECT o.tenant_id, o.id, row_number() OVER (PARTITION BY o.tenant_id ORDER BY o.id) AS k
            FROM oldest o
            WHERE o.queued
        ),
        urgent AS MATERIALIZED (
            SELECT c.tenant_id, u.id, row_number() OVER (PARTITION BY c.tenant_id ORDER BY u.priority DESC, u.id) AS k
            FROM (SELECT p.tenant_id, count(*) AS many FROM places p GROUP BY p.tenant_id) c,
                 LATERAL (
                     SELECT q.id, q.priority
                     FROM runs q
                     WHERE q.tenant_id = c.tenant_id AND q.status = 'queued' AND q.queued_at < v_before
                     ORDER BY q.priority DESC, q.id
                     LIMIT c.many
                 ) u
        ),
        named AS MATERIALIZED (
            SELECT o.id AS place, o.tenant_id, o.id FROM oldest o WHERE NOT o.queued
            UNION ALL
            SELECT p.id, u.tenant_id, u.id FROM places p JOIN urgent u ON u.tenant_id = p.tenant_id AND u.k = p.k
        )
        SELECT r.id, r.requester
        FROM named n
        JOIN runs r ON r.tenant_id = n.tenant_id AND r.id = n.id
        ORDER BY n.place;
END
$$;

RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
