-- Statements of the administration. What the platform does to a tenant runs bound to that tenant.

-- name: begun
-- The steps that a kill closes, a worker's included. Run under `hold`.
SELECT s.n, s.kind, s.name
FROM steps s
WHERE s.tenant_id = :tenant AND s.run_id = :run AND s.status = 'started'
ORDER BY s.n;

-- name: hold
SELECT r.* FROM runs r WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run FOR UPDATE;

-- name: kill
-- Run under `hold`. No row: it is over already. Its worker finds at its next write that it does not have the run any more.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
killed AS (
    UPDATE runs r
    SET cancel_requested_at = coalesce(r.cancel_requested_at, t.now), status = 'cancelled', worker_id = NULL,
        finished_at = t.now, last_sequence = r.last_sequence + CAST(:event_count AS integer)
    FROM t
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
      AND r.status IN ('queued', 'running', 'waiting', 'needs_operator')
    RETURNING r.*
),
closed AS (
    UPDATE steps s
    SET status = 'unknown', finished_at = killed.finished_at, error = CAST(:interrupted AS json)
    FROM killed
    WHERE s.tenant_id = :tenant AND s.run_id = killed.id AND s.status = 'started'
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT killed.tenant_id, killed.id, killed.last_sequence - CAST(:event_count AS integer) + e.place, e.type,
           killed.finished_at, CAST(e.data AS json), :correlation_id, :traceparent
    FROM killed, json_to_recordset(CAST(:events AS json)) AS e (place integer, type text, data text)
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT killed.tenant_id, killed.namespace, :actor, :principal, 'run.kill',
           'run_' || replace(CAST(killed.id AS text), '-', ''), :correlation_id
    FROM killed
)
SELECT * FROM killed;

-- name: lock
-- A hold is placed before a batch, or after it.
SELECT ao_lock_holds(:tenant);

-- name: standing
-- Of a tenant that shall be erased: what it is, how many of its runs are not over, and whether erasing has begun.
SELECT (SELECT t.status FROM tenants t WHERE t.tenant_id = :tenant) AS status,
       ao_holds_in_force(:tenant) AS held,
       (SELECT x.status FROM tenant_tombstones x WHERE x.tenant_id = :tenant) AS erasing,
       (SELECT count(*) FROM runs r
        WHERE r.tenant_id = :tenant AND r.status IN ('queued', 'running', 'waiting', 'needs_operator')) AS open_runs;

-- name: exported
SELECT x.export_sha256 FROM tenant_tombstones x WHERE x.tenant_id = :tenant;

-- name: begin_erasing
-- Once: a tombstone that is there stays.
WITH made AS (
    INSERT INTO tenant_tombstones (tenant_id, status, actor_tenant, principal, export_sha256)
    VALUES (:tenant, 'erasing', :actor, :principal, :export_sha256)
    ON CONFLICT (tenant_id) DO NOTHING
    RETURNING tenant_id
)
INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
SELECT made.tenant_id, :namespace, :actor, :principal, 'tenant.erase', :export_sha256, :correlation_id FROM made;

-- name: erase_rows
SELECT ao_erase_rows(:tenant, :limit) AS removed;

-- name: end_erasing
WITH ended AS (
    UPDATE tenant_tombstones x SET status = 'erased', erased_at = ao_now()
    WHERE x.tenant_id = :tenant AND x.status = 'erasing'
    RETURNING x.tenant_id
)
INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
SELECT ended.tenant_id, :namespace, :actor, :principal, 'tenant.erased', ended.tenant_id, :correlation_id FROM ended;

-- name: stays
SELECT s.home FROM ao_tenant_stays() s;

-- name: move_standing
-- Of this database.
SELECT s.state, s.other FROM ao_move_standing() s;

-- name: forget_home
SELECT ao_forget_home();
