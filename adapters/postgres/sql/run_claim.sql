-- Statements of taking runs.

-- name: claim
-- Several runs, or one. The runs first, then the counts they leave, each in one order, so that whoever does the same at the
-- same moment waits at the same place. Then a place for each, the lowest free ones of its tenant that nobody is just taking.
-- The k-th free place is to be had while k more runs are within the limit, which also holds where the limit was lowered below
-- what is running. A run that is taken over has its place already. Which run may be claimed is said by a CASE, because a plain
-- comparison makes the planner, who knows little of how many are queued, look through all that are rather than find one by its key.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
asked AS MATERIALIZED (
    SELECT a.*
    FROM json_to_recordset(CAST(:asks AS json)) AS a (
        place integer, tenant text, namespace text, run uuid, worker text, correlation_id text, traceparent text
    )
),
found AS MATERIALIZED (
    SELECT a.place, a.worker, a.correlation_id, a.traceparent, r.tenant_id, r.id, r.status, r.backlog_stripe
    FROM t, asked a
    JOIN runs r ON r.tenant_id = a.tenant AND r.namespace = a.namespace AND r.id = a.run
    WHERE CASE r.status
              WHEN 'queued' THEN true
              WHEN 'running' THEN NOT EXISTS (SELECT FROM workers w WHERE w.id = r.worker_id AND w.lease_until > t.now)
              ELSE false
          END
      AND EXISTS (SELECT FROM workers w WHERE w.id = a.worker AND w.lease_until > t.now)
    ORDER BY r.tenant_id, r.id
    FOR NO KEY UPDATE OF r
),
counted AS MATERIALIZED (
    SELECT b.stripe
    FROM (SELECT DISTINCT f.tenant_id, f.backlog_stripe FROM found f WHERE f.status = 'queued') f
    JOIN run_backlogs b ON b.tenant_id = f.tenant_id AND b.stripe = f.backlog_stripe
    ORDER BY b.tenant_id, b.stripe
    FOR NO KEY UPDATE OF b
),
wanting AS MATERIALIZED (
    SELECT f.place, f.tenant_id, row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.id) AS k
    FROM found f
    WHERE f.status = 'queued' AND (SELECT count(*) FROM counted) >= 0
),
crowd AS MATERIALIZED (SELECT w.tenant_id, count(*) AS many FROM wanting w GROUP BY w.tenant_id),
places AS MATERIALIZED (
    SELECT s.tenant_id, s.n, s.run_id IS NULL AS free,
           count(*) FILTER (WHERE s.run_id IS NULL) OVER (PARTITION BY s.tenant_id ORDER BY s.n) AS k,
           coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), CAST(:max_active_runs AS integer))
           - count(*) FILTER (WHERE s.run_id IS NOT NULL) OVER (PARTITION BY s.tenant_id) AS room
    FROM crowd c
    JOIN run_slots s ON s.tenant_id = c.tenant_id
    LEFT JOIN tenants x ON x.tenant_id = c.tenant_id
),
had AS MATERIALIZED (
    SELECT c.tenant_id, h.n, row_number() OVER (PARTITION BY c.tenant_id ORDER BY h.n) AS k
    FROM crowd c,
         LATERAL (
             SELECT s.n
             FROM places p
             JOIN run_slots s ON s.tenant_id = p.tenant_id AND s.n = p.n
             WHERE p.tenant_id = c.tenant_id AND p.free AND p.k <= p.room AND s.run_id IS NULL
             ORDER BY p.n
             LIMIT c.many
             FOR UPDATE OF s SKIP LOCKED
         ) h
),
won AS (
    UPDATE runs r
    SET status = 'running',
        worker_id = f.worker,
        epoch = r.epoch + 1,
        recoveries = r.recoveries + CASE r.status WHEN 'running' THEN 1 ELSE 0 END,
        started_at = coalesce(r.started_at, t.now),
        last_sequence = r.last_sequence + CASE WHEN r.started_at IS NULL THEN 1 ELSE 0 END,
        slot = CASE r.status WHEN 'running' THEN r.slot ELSE g.n END
    FROM t, found f
    LEFT JOIN wanting w ON w.place = f.place
    LEFT JOIN had g ON g.tenant_id = w.tenant_id AND g.k = w.k
    WHERE r.tenant_id = f.tenant_id AND r.id = f.id AND (f.status = 'running' OR g.n IS NOT NULL)
    RETURNING f.place, f.correlation_id, f.traceparent, old.started_at IS NULL AS first_time, old.status = 'queued' AS placed,
              new.*
),
held AS (
    UPDATE run_slots s SET run_id = won.id
    FROM won
    WHERE s.tenant_id = won.tenant_id AND s.n = won.slot AND won.placed
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
