-- Statements of Privacy. What is exported is read as its tenant; what is erased goes through functions that act for the tenant
-- that the transaction is bound to, and for nobody else.

-- name: lock_holds
SELECT ao_lock_holds(:tenant);

-- name: held
SELECT ao_held(:tenant, :subject) AS held;

-- name: open_runs
SELECT ao_open_runs_of(:subject) AS open;

-- name: erase_runs
SELECT * FROM ao_erase_runs(:subject, :after, :limit);

-- name: erase_requests
SELECT * FROM ao_erase_requests(:subject, :erased, :after, :limit);

-- name: erase_usage
SELECT * FROM ao_erase_usage(:subject, :erased, :after, :limit);

-- name: erase_keys
SELECT ao_erase_keys(:subject) AS removed;

-- name: note
INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
VALUES (:tenant, :namespace, :tenant, :principal, :action, :subject, :correlation_id);

-- name: runs
-- The tenant's next runs, and which of them are the subject's.
SELECT r.id, r.requester ->> 'principal' = :subject AS theirs
FROM runs r
WHERE r.tenant_id = :tenant AND r.id > :after
ORDER BY r.id
LIMIT :limit;

-- name: run
SELECT r.* FROM runs r WHERE r.tenant_id = :tenant AND r.id = :run;

-- name: steps
SELECT s.* FROM steps s WHERE s.tenant_id = :tenant AND s.run_id = :run ORDER BY s.n;

-- name: events
SELECT e.* FROM run_events e WHERE e.tenant_id = :tenant AND e.run_id = :run ORDER BY e.sequence;

-- name: requests
SELECT r.id, r.principal = :subject AS theirs, to_jsonb(r) - 'tenant_id' - 'id' AS data
FROM request_records r
WHERE r.tenant_id = :tenant AND r.id > :after
ORDER BY r.id
LIMIT :limit;

-- name: usage
SELECT u.request_id, u.attempt, u.principal = :subject AS theirs, to_jsonb(u) - 'tenant_id' - 'hold_id' AS data
FROM usage_events u
WHERE u.tenant_id = :tenant AND (u.request_id, u.attempt) > (:after, CAST(:attempt AS integer))
ORDER BY u.request_id, u.attempt
LIMIT :limit;

-- name: keys
SELECT k.id, to_jsonb(k) - 'tenant_id' - 'id' - 'secret_sha256' AS data
FROM api_keys k
WHERE k.tenant_id = :tenant AND k.id > :after AND k.principal = :subject
ORDER BY k.id
LIMIT :limit;

-- name: audit
SELECT a.id, a.principal = :subject OR a.subject = :subject AS theirs, to_jsonb(a) - 'tenant_id' - 'id' AS data
FROM audit_log a
WHERE a.tenant_id = :tenant AND a.id > :after
ORDER BY a.id
LIMIT :limit;

-- name: hold
INSERT INTO legal_holds (tenant_id, subject, reason, placed_by) VALUES (:tenant, :subject, :reason, :principal) RETURNING *;

-- name: lift
UPDATE legal_holds h SET lifted_at = ao_now()
WHERE h.tenant_id = :tenant AND h.id = :hold AND h.lifted_at IS NULL
RETURNING h.subject;

-- name: holds
SELECT h.* FROM legal_holds h WHERE h.tenant_id = :tenant AND h.lifted_at IS NULL ORDER BY h.id LIMIT :limit;
