-- Statements of the reply journal. An entry that is neither completed nor held may be won again.

-- name: forget
-- Across tenants, what is kept no longer.
SELECT ao_replies_forget(:limit);

-- name: open
-- No row: it is somebody else's, completed, or another request's. One that is past its retention is as good as absent,
-- whether or not it was swept away.
WITH t AS MATERIALIZED (SELECT ao_now() AS now)
INSERT INTO model_replies AS m (tenant_id, namespace, step_key, digest, lease, lease_until, changed_at, keep, forget_at, principal)
SELECT :tenant, :namespace, :key, :digest, uuidv7(), t.now + CAST(:lease AS interval), t.now, CAST(:keep AS interval),
       t.now + CAST(:keep AS interval), :principal
FROM t
ON CONFLICT (tenant_id, namespace, step_key) DO UPDATE
SET digest = excluded.digest,
    lease = excluded.lease,
    lease_until = excluded.lease_until,
    possible_duplicate = m.forget_at > excluded.changed_at,
    cancel_requested = false,
    completed = false,
    outcome = NULL,
    changed_at = excluded.changed_at,
    keep = excluded.keep,
    forget_at = excluded.forget_at,
    principal = excluded.principal
WHERE NOT m.completed AND m.lease_until <= excluded.changed_at AND m.digest = excluded.digest
   OR m.forget_at <= excluded.changed_at AND (m.completed OR m.lease_until <= excluded.changed_at)
RETURNING m.lease, m.possible_duplicate;

-- name: find
SELECT m.digest, m.completed, m.outcome, m.lease_until
FROM model_replies m
WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.step_key = :key;

-- name: extend
UPDATE model_replies m
SET lease_until = ao_now() + CAST(:duration AS interval)
WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.step_key = :key
  AND m.lease = CAST(:lease AS uuid) AND NOT m.completed
RETURNING m.cancel_requested;

-- name: complete
-- Says whether the outcome is there, from now or from before.
WITH closed AS (
    UPDATE model_replies m
    SET completed = true, outcome = CAST(:outcome AS json), changed_at = ao_now(), forget_at = ao_now() + m.keep
    WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.step_key = :key
      AND m.lease = CAST(:lease AS uuid) AND NOT m.completed
    RETURNING m.step_key
)
SELECT EXISTS (SELECT FROM closed) OR EXISTS (
    SELECT FROM model_replies m
    WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.step_key = :key
      AND m.lease = CAST(:lease AS uuid) AND m.completed
) AS completed;

-- name: abandon
WITH gone AS (
    DELETE FROM model_replies m
    WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.step_key = :key
      AND m.lease = CAST(:lease AS uuid) AND NOT m.completed
      AND NOT (m.possible_duplicate OR CAST(:maybe_made AS boolean))
    RETURNING m.step_key
),
freed AS (
    UPDATE model_replies m
    SET lease = gen_random_uuid(), lease_until = ao_now()
    WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.step_key = :key
      AND m.lease = CAST(:lease AS uuid) AND NOT m.completed
      AND (m.possible_duplicate OR CAST(:maybe_made AS boolean))
    RETURNING m.step_key
)
SELECT EXISTS (SELECT FROM gone) OR EXISTS (SELECT FROM freed) AS abandoned;

-- name: cancel
UPDATE model_replies m
SET cancel_requested = true
WHERE m.tenant_id = :tenant AND m.namespace = :namespace AND m.step_key = :key
  AND NOT m.completed AND m.lease_until > (SELECT ao_now())
RETURNING m.step_key;
