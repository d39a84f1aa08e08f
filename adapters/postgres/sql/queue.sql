-- Statements of Queue. `visible_at` is the end of the delay or of the lease: what lies in the past is ready.

-- name: enqueue
-- Several messages, or one. Wakes their tenants where they sleep. Where one doesn't, a key lock sees to it that it stays awake
-- until this is committed; such locks don't wait for each other, so that one tenant's enqueues don't either. A parked tenant
-- is looked at anyway.
WITH asked AS MATERIALIZED (
    SELECT a.place, a.tenant, a.namespace, a.requester, a.body, a.priority, t.now, greatest(t.now, a.not_before) AS at
    FROM (SELECT ao_now() AS now) t,
         json_to_recordset(CAST(:asks AS json)) AS a (
             place integer, tenant text, namespace text, requester text, body text, not_before timestamptz,
             priority smallint
         )
),
due AS MATERIALIZED (
    SELECT a.tenant, min(a.now) AS now, min(a.at) AS at FROM asked a GROUP BY a.tenant ORDER BY a.tenant
),
awake AS MATERIALIZED (
    SELECT q.tenant_id
    FROM due
    JOIN queue_turns q ON q.tenant_id = due.tenant
    WHERE q.next_at <= due.at OR q.parked
    ORDER BY q.tenant_id
    FOR KEY SHARE OF q
),
woken AS (
    INSERT INTO queue_turns AS q (tenant_id, vtime, next_at, served_at)
    SELECT due.tenant, v.last_value, due.at, due.now
    FROM due, queue_vtime v
    WHERE due.tenant NOT IN (SELECT awake.tenant_id FROM awake)
    ORDER BY due.tenant
    ON CONFLICT (tenant_id) DO UPDATE
    SET next_at = least(q.next_at, excluded.next_at), vtime = greatest(q.vtime, excluded.vtime), served_at = excluded.served_at
)
INSERT INTO queue_messages (tenant_id, namespace, requester, body, visible_at, priority)
SELECT a.tenant, a.namespace, CAST(a.requester AS json), decode(a.body, 'base64'), a.at, a.priority
FROM asked a
ORDER BY a.place;

-- name: lease
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
picked AS MATERIALIZED (
    SELECT m.id
    FROM queue_messages m, t
    WHERE m.tenant_id = :tenant AND m.visible_at <= t.now
    ORDER BY m.priority DESC, m.id
    LIMIT :limit
    FOR UPDATE OF m SKIP LOCKED
)
UPDATE queue_messages m
SET lease = uuidv7(), visible_at = t.now + CAST(:duration AS interval), attempt = m.attempt + 1
FROM picked, t
WHERE m.tenant_id = :tenant AND m.id = picked.id
RETURNING m.*;

-- name: lease_any
-- Across tenants in turn, for workers.
SELECT * FROM ao_queue_lease_in_turn(:limit, CAST(:duration AS interval), :max_active_runs);

-- name: lease_idle
-- The same, of tenants that have nothing under way only.
SELECT * FROM ao_queue_lease_idle(:limit, CAST(:duration AS interval), :max_active_runs);

-- name: extend
UPDATE queue_messages m
SET visible_at = ao_now() + CAST(:duration AS interval)
WHERE m.tenant_id = :tenant AND m.id = :message AND m.lease = CAST(:lease AS uuid)
RETURNING m.*;

-- name: release
-- Wakes its tenant like `enqueue`.
WITH due AS MATERIALIZED (SELECT t.now, t.now + CAST(:delay AS interval) AS at FROM (SELECT ao_now() AS now) t),
given_back AS (
    UPDATE queue_messages m
    SET visible_at = due.at, lease = NULL
    FROM due
    WHERE m.tenant_id = :tenant AND m.id = :message AND m.lease = CAST(:lease AS uuid)
    RETURNING m.id
),
awake AS MATERIALIZED (
    SELECT q.tenant_id FROM queue_turns q, due
    WHERE q.tenant_id = :tenant AND (q.next_at <= due.at OR q.parked)
    FOR KEY SHARE OF q
),
woken AS (
    INSERT INTO queue_turns AS q (tenant_id, vtime, next_at, served_at)
    SELECT :tenant, v.last_value, due.at, due.now FROM given_back, due, queue_vtime v WHERE NOT EXISTS (SELECT FROM awake)
    ON CONFLICT (tenant_id) DO UPDATE
    SET next_at = least(q.next_at, excluded.next_at), vtime = greatest(q.vtime, excluded.vtime), served_at = excluded.served_at
)
SELECT id FROM given_back;

-- name: ack
-- Of several messages, or of one: says of each whether it is still there under another lease. Joined, because an EXISTS may be
-- answered from a table of all messages.
WITH asked AS MATERIALIZED (
    SELECT a.*
    FROM json_to_recordset(CAST(:asks AS json)) AS a (place integer, tenant text, message uuid, lease uuid)
),
gone AS (
    DELETE FROM queue_messages m
    USING asked a
    WHERE m.tenant_id = a.tenant AND m.id = a.message AND m.lease = a.lease
    RETURNING old.tenant_id, old.id, old.lease
)
SELECT a.place, coalesce(gone.tenant_id, a.tenant) AS tenant_id, gone.id IS NOT NULL AS acknowledged,
       m.id IS NOT NULL AS existed
FROM asked a
LEFT JOIN gone ON gone.id = a.message AND gone.lease = a.lease
LEFT JOIN queue_messages m ON m.tenant_id = a.tenant AND m.id = a.message;

-- name: depth
SELECT count(*) FILTER (WHERE m.visible_at <= t.now) AS ready,
       count(*) FILTER (WHERE m.visible_at > t.now AND m.lease IS NOT NULL) AS leased
FROM (SELECT ao_now() AS now) t
LEFT JOIN queue_messages m ON m.tenant_id = :tenant;

-- name: depth_any
-- Across tenants, for workers.
SELECT ready, leased FROM ao_queue_depth();
