-- Statements that read a run in the midst of a transaction about it.

-- name: known
-- The run that a key made, with the fingerprint it was made with.
SELECT i.fingerprint, r.*
FROM idempotency i
JOIN runs r ON r.tenant_id = i.tenant_id AND r.id = i.run_id
WHERE i.tenant_id = :tenant AND i.namespace = :namespace AND i.principal = :principal AND i.route = :route AND i.key = :key
  AND r.tenant_id = :tenant;

-- name: load
SELECT r.* FROM runs r WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run;

-- name: standing
-- Why a claim or a fenced write found nothing to do.
SELECT r.status, r.epoch,
       EXISTS (SELECT FROM workers w WHERE w.id = r.worker_id AND w.lease_until > ao_now()) AS held,
       EXISTS (SELECT FROM workers w WHERE w.id = :worker AND w.lease_until > ao_now()) AS live
FROM runs r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run;
