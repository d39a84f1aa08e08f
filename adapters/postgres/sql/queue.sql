-- Statements of Queue. `visible_at` is the end of the delay or of the lease: what lies in the past is ready.

-- name: enqueue
INSERT INTO queue_messages (tenant_id, namespace, requester, body, visible_at)
SELECT :tenant, :namespace, CAST(:requester AS json), CAST(:body AS bytea),
       greatest(t.now, CAST(:not_before AS timestamptz))
FROM (SELECT ao_now() AS now) t;

-- name: lease
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
picked AS MATERIALIZED (
    SELECT m.id
    FROM queue_messages m, t
    WHERE m.tenant_id = :tenant AND m.visible_at <= t.now
    ORDER BY m.id
    LIMIT :limit
    FOR UPDATE OF m SKIP LOCKED
)
UPDATE queue_messages m
SET lease = uuidv7(), visible_at = t.now + CAST(:duration AS interval), attempt = m.attempt + 1
FROM picked, t
WHERE m.tenant_id = :tenant AND m.id = picked.id
RETURNING m.*;

-- name: lease_any
-- Across tenants, for workers.
SELECT * FROM ao_queue_lease(:limit, CAST(:duration AS interval));

-- name: extend
UPDATE queue_messages m
SET visible_at = ao_now() + CAST(:duration AS interval)
WHERE m.tenant_id = :tenant AND m.id = :message AND m.lease = CAST(:lease AS uuid)
RETURNING m.*;

-- name: release
UPDATE queue_messages m
SET visible_at = ao_now(), lease = NULL
WHERE m.tenant_id = :tenant AND m.id = :message AND m.lease = CAST(:lease AS uuid)
RETURNING m.id;

-- name: ack
-- Says whether the message is still there under another lease.
WITH gone AS (
    DELETE FROM queue_messages m
    WHERE m.tenant_id = :tenant AND m.id = :message AND m.lease = CAST(:lease AS uuid)
    RETURNING m.id
)
SELECT EXISTS (SELECT FROM gone) AS acknowledged,
       EXISTS (SELECT FROM queue_messages m WHERE m.tenant_id = :tenant AND m.id = :message) AS existed;

-- name: depth
SELECT count(*) FILTER (WHERE m.visible_at <= t.now) AS ready,
       count(*) FILTER (WHERE m.visible_at > t.now AND m.lease IS NOT NULL) AS leased
FROM (SELECT ao_now() AS now) t
LEFT JOIN queue_messages m ON m.tenant_id = :tenant;

-- name: depth_any
-- Across tenants, for workers.
SELECT ready, leased FROM ao_queue_depth();
