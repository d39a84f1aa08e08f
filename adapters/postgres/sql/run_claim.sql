-- Statements of taking runs.

-- name: claim
-- Several runs of one tenant, or one. The runs first, then the counts they leave, each in one order, so that whoever does the
-- same at the same moment waits at the same place. Then a place for each, the lowest free ones that nobody is just taking. The
-- k-th free place is to be had while k more runs are within the limit, which also holds where the limit was lowered below what
-- is running. A run that is taken over has its place already.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
asked AS MATERIALIZED (
    SELECT a.*
    FROM json_to_recordset(CAST(:asks AS json)) AS a (
        place integer, namespace text, run uuid, worker text, correlation_id text, traceparent text
    )
),
found AS MATERIALIZED (
    SELECT a.place, r.id, r.status, r.backlog_stripe
    FROM t, asked a
    JOIN runs r ON r.tenant_id = :tenant AND r.namespace = a.namespace AND r.id = a.run
    WHERE (
          r.status = 'queued'
          OR r.status = 'running'
          AND NOT EXISTS (SELECT FROM workers w WHERE w.id = r.worker_id AND w.lease_until > t.now)
      )
      AND EXISTS (SELECT FROM workers w WHERE w.id = a.worker AND w.lease_until > t.now)
    ORDER BY r.id
    FOR NO KEY UPDATE OF r
),
counted AS MATERIALIZED (
    SELECT b.stripe
    FROM run_backlogs b
    WHERE b.tenant_id = :tenant AND b.stripe IN (SELECT f.backlog_stripe FROM found f WHERE f.status = 'queued')
    ORDER BY b.stripe
    FOR NO KEY UPDATE
),
wanting AS MATERIALIZED (
    SELECT f.place, row_number() OVER (ORDER BY f.id) AS k
    FROM found f
    WHERE f.status = 'queued' AND (SELECT count(*) FROM counted) >= 0
),
places AS MATERIALIZED (
    SELECT s.n, s.run_id IS NULL AS free, count(*) FILTER (WHERE s.run_id IS NULL) OVER (ORDER BY s.n) AS k
    FROM run_slots s
    WHERE s.tenant_id = :tenant
),
room AS MATERIALIZED (
    SELECT coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), CAST(:max_active_runs AS integer))
           - (SELECT count(*) FROM places WHERE NOT places.free) AS left
    FROM t
    LEFT JOIN tenants x ON x.tenant_id = :tenant
),
had AS MATERIALIZED (
    SELECT s.n
    FROM places p, room, run_slots s
    WHERE p.free AND p.k <= room.left AND s.tenant_id = :tenant AND s.n = p.n AND s.run_id IS NULL
    ORDER BY p.n
    LIMIT (SELECT count(*) FROM wanting)
    FOR UPDATE OF s SKIP LOCKED
),
given AS MATERIALIZED (
    SELECT w.place, h.n
    FROM wanting w
    JOIN (SELECT had.n, row_number() OVER (ORDER BY had.n) AS k FROM had) h ON h.k = w.k
),
won AS (
    UPDATE runs r
    SET status = 'running',
        worker_id = a.worker,
        epoch = r.epoch + 1,
        recoveries = r.recoveries + CASE r.status WHEN 'running' THEN 1 ELSE 0 END,
        started_at = coalesce(r.started_at, t.now),
        last_sequence = r.last_sequence + CASE WHEN r.started_at IS NULL THEN 1 ELSE 0 END,
        slot = CASE r.status WHEN 'running' THEN r.slot ELSE g.n END
    FROM t, asked a
    JOIN found f ON f.place = a.place
    LEFT JOIN given g ON g.place = a.place
    WHERE r.tenant_id = :tenant AND r.id = f.id AND (f.status = 'running' OR g.n IS NOT NULL)
    RETURNING a.place, a.correlation_id, a.traceparent, old.started_at IS NULL AS first_time, old.status = 'queued' AS placed,
              new.*
),
held AS (
    UPDATE run_slots s SET run_id = won.id
    FROM won
    WHERE s.tenant_id = :tenant AND s.n = won.slot AND won.placed
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT won.tenant_id, won.id, won.last_sequence, 'run.started', won.started_at, '{}', won.correlation_id, won.traceparent
    FROM won
    WHERE won.first_time
)
SELECT * FROM won;

-- name: provide
-- More places for a tenant that uses all it has had so far: as many again, or as are wanted, up to its limit.
INSERT INTO run_slots (tenant_id, n)
SELECT :tenant, n
FROM (SELECT coalesce(max(s.n), 0) AS made FROM run_slots s WHERE s.tenant_id = :tenant) so_far,
     (
         SELECT coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), CAST(:max_active_runs AS integer)) AS most
         FROM (SELECT) nobody
         LEFT JOIN tenants x ON x.tenant_id = :tenant
     ) quota,
     generate_series(made + 1, least(most, made + greatest(8, made, CAST(:wanted AS integer)))) AS n
ON CONFLICT DO NOTHING;
