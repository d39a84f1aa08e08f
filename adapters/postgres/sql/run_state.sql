-- Statements of RunState. Each names tenant and namespace; each change is one statement, so one round trip.

-- name: remember
-- A key that changed a run which exists already. Nothing when the key is taken.
INSERT INTO idempotency (tenant_id, namespace, principal, route, key, fingerprint, run_id, created_at)
VALUES (:tenant, :namespace, :principal, :route, :key, :fingerprint, :run, ao_now())
ON CONFLICT DO NOTHING;

-- name: begun
-- The steps that a cancel would close. None of a run that is running: whoever has it, or recovers it, closes them.
SELECT s.n, s.kind, s.name
FROM runs r
JOIN steps s ON s.tenant_id = r.tenant_id AND s.run_id = r.id
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run AND r.status <> 'running'
  AND s.tenant_id = :tenant AND s.status = 'started'
ORDER BY s.n;

-- name: cancel
-- Run under `hold`. A running run is asked to end, also when its worker's lease has lapsed: whoever recovers it knows what may
-- still be at work. Any other open run ends here, and with it the steps that were begun.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
asked AS (
    UPDATE runs r
    SET cancel_requested_at = coalesce(r.cancel_requested_at, t.now),
        status = CASE r.status WHEN 'running' THEN 'running' ELSE 'cancelled' END,
        finished_at = CASE r.status WHEN 'running' THEN r.finished_at ELSE t.now END,
        last_sequence = r.last_sequence + CASE r.status WHEN 'running' THEN 0 ELSE CAST(:event_count AS integer) END
    FROM t
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
      AND (
          r.status IN ('queued', 'waiting', 'needs_operator')
          OR r.status = 'running' AND r.cancel_requested_at IS NULL
      )
    RETURNING r.*
),
closed AS (
    UPDATE steps s
    SET status = 'unknown', finished_at = asked.finished_at, error = CAST(:interrupted AS json)
    FROM asked
    WHERE asked.status = 'cancelled' AND s.tenant_id = :tenant AND s.run_id = asked.id AND s.status = 'started'
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT asked.tenant_id, asked.id, asked.last_sequence - CAST(:event_count AS integer) + e.place, e.type, asked.finished_at,
           CAST(e.data AS json), :correlation_id, :traceparent
    FROM asked,
         json_to_recordset(CAST(:events AS json)) AS e (place integer, type text, data text)
    WHERE asked.status = 'cancelled'
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT asked.tenant_id, asked.namespace, ao_actor(:tenant, :principal), :principal, 'run.cancel',
           'run_' || replace(CAST(asked.id AS text), '-', ''), :correlation_id
    FROM asked
)
SELECT * FROM asked;

-- name: hold
-- The run under its lock: what the next statement of this transaction sees is the latest.
SELECT r.* FROM runs r WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run FOR UPDATE;

-- name: resolve
-- Run under `hold`. The step moves first, and everything else hangs on that.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
decided AS (
    UPDATE steps s
    SET status = :status, output = CAST(:output AS json), error = CAST(:error AS json),
        finished_at = CASE WHEN CAST(:status AS text) <> 'planned' THEN t.now END
    FROM runs r, t
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run AND r.status = 'needs_operator'
      AND s.tenant_id = :tenant AND s.run_id = r.id AND s.n = :n AND s.status = 'unknown'
    RETURNING s.run_id, t.now, t.now - old.finished_at AS waited, NOT EXISTS (
        SELECT FROM steps o
        WHERE o.tenant_id = :tenant AND o.run_id = s.run_id AND o.n <> s.n AND o.status = 'unknown'
    ) AS last
),
moved AS (
    UPDATE runs r
    SET last_sequence = r.last_sequence + 1,
        status = CASE WHEN decided.last THEN 'queued' ELSE r.status END,
        queued_at = CASE WHEN decided.last THEN decided.now ELSE r.queued_at END,
        deadline_at = CASE WHEN decided.last THEN r.deadline_at + decided.waited ELSE r.deadline_at END,
        waited = CASE WHEN decided.last THEN r.waited + decided.waited ELSE r.waited END
    FROM decided
    WHERE r.tenant_id = :tenant AND r.id = decided.run_id
    RETURNING r.*
),
taken AS (
    INSERT INTO idempotency (tenant_id, namespace, principal, route, key, fingerprint, run_id, created_at)
    SELECT moved.tenant_id, moved.namespace, :principal, :route, :key, :fingerprint, moved.id, decided.now FROM moved, decided
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT moved.tenant_id, moved.id, moved.last_sequence, 'step.resolved', decided.now, CAST(:data AS json),
           :correlation_id, :traceparent
    FROM moved, decided
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT moved.tenant_id, moved.namespace, ao_actor(:tenant, :principal), :principal, :action,
           'run_' || replace(CAST(moved.id AS text), '-', '') || ':' || CAST(:n AS integer), :correlation_id
    FROM moved
)
SELECT * FROM moved;

-- name: steps
-- One row per step, and one without a step for a run that has none left: no row means no run.
SELECT s.*
FROM runs r
LEFT JOIN LATERAL (
    SELECT * FROM steps
    WHERE steps.tenant_id = :tenant AND steps.run_id = r.id AND steps.n > :after
    ORDER BY steps.n
    LIMIT :limit
) s ON true
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
ORDER BY s.n;

-- The lists below say "equal" as "not above and not below", and sort by what is equal as well, so that only the index that is
-- made for them is in their order. Else the index of all runs by age is, which seems cheap to the planner and is read through
-- everybody's runs until a page is full.

-- name: list
SELECT r.*
FROM runs r
WHERE r.tenant_id = :tenant AND r.namespace >= :namespace
  AND (r.namespace, r.id) < (:namespace, :before)
ORDER BY r.namespace DESC, r.id DESC
LIMIT :limit;

-- name: list_of_status
SELECT r.*
FROM runs r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.status >= :status
  AND (r.status, r.id) < (:status, :before)
ORDER BY r.status DESC, r.id DESC
LIMIT :limit;

-- name: list_of_agent
-- Of one status or of all. The newest of each, by its own stretch of the index, and of these the newest.
SELECT r.*
FROM (
    SELECT newest.id
    FROM (
        VALUES ('queued'), ('running'), ('waiting'), ('succeeded'), ('failed'), ('cancelled'), ('needs_operator')
    ) AS s (status),
    LATERAL (
        SELECT a.id
        FROM runs a
        WHERE a.tenant_id = :tenant AND a.namespace = :namespace AND (a.agent_id, a.status) >= (:agent_id, s.status)
          AND (a.agent_id, a.status, a.id) < (:agent_id, s.status, :before)
        ORDER BY a.agent_id DESC, a.status DESC, a.id DESC
        LIMIT :limit
    ) newest
    WHERE CAST(:status AS text) IS NULL OR s.status = :status
    ORDER BY newest.id DESC
    LIMIT :limit
) page
JOIN runs r ON r.tenant_id = :tenant AND r.id = page.id
ORDER BY r.id DESC;

-- name: children
-- As `list`, of the runs that one run made.
SELECT r.*
FROM runs r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.parent_id = CAST(:parent AS uuid) AND r.id < :before
  AND (CAST(:status AS text) IS NULL OR r.status = :status)
  AND (CAST(:agent_id AS text) IS NULL OR r.agent_id = :agent_id)
ORDER BY r.id DESC
LIMIT :limit;

-- name: wake
-- Run under `hold`, so after everything that the run's lock waited for: whoever ended a child before that is seen here, and
-- whoever ends one after it finds the run waiting.
UPDATE runs r
SET status = 'queued', queued_at = t.now
FROM (SELECT ao_now() AS now) t
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run AND r.status = 'waiting'
  AND (
      r.cancel_requested_at IS NOT NULL
      OR r.deadline_at <= t.now
      OR r.waits_for = 'child' AND NOT EXISTS (
          SELECT FROM runs c
          WHERE c.tenant_id = :tenant AND c.parent_id = r.id AND c.status NOT IN ('succeeded', 'failed', 'cancelled')
      )
  )
RETURNING r.id;

-- name: adrift
-- Across tenants, like `orphans`.
SELECT id, requester, due FROM ao_adrift(:limit);

-- name: renew
-- Across tenants: a worker holds runs of many. One row at least, for the time.
SELECT t.now, r.id
FROM (SELECT ao_now() AS now) t
LEFT JOIN ao_worker_renew(:worker, CAST(:duration AS interval)) AS r (id) ON true;

-- name: retire
SELECT ao_worker_retire(:worker);

-- name: orphans
-- Across tenants: the sweeper serves them all.
SELECT id, requester FROM ao_orphans_with_room(CAST(:queued_for AS interval), :limit, :max_active_runs);
