-- Statements of the request log. An id says the day, and with it the partition.

-- name: write
-- Records that are known change nothing.
WITH asked AS MATERIALIZED (
    SELECT r.* FROM unnest(CAST(string_to_array(CAST(:records AS text), :between) AS ao_given_record[])) AS r
),
added AS (
    INSERT INTO request_records (
        tenant_id, id, at, namespace, principal, correlation_id, route, stream, model_asked, model, backend, status, code, denied,
        decision, reasons, attempts, prompt_tokens, completion_tokens, cost_nanousd, estimated, latency_ms, replayed, joined,
        kept_until
    )
    SELECT :tenant, CAST(substr(a.id, 5) AS uuid), a.at, a.namespace, a.principal, a.correlation_id, a.route, a.stream, a.model_asked, a.model, a.backend,
           a.status, a.code, a.denied, a.decision, a.reasons, a.attempts, a.prompt_tokens, a.completion_tokens,
           a.cost_nanousd, a.estimated, a.latency_ms, a.replayed, a.joined, nullif(a.kept_until, 'infinity')
    FROM asked a
    ON CONFLICT (tenant_id, id) DO NOTHING
    RETURNING id, namespace, principal, correlation_id, denied
)
INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id, outcome)
SELECT :tenant, a.namespace, ao_actor(:tenant, a.principal), a.principal, :action, 'req_' || replace(CAST(a.id AS text), '-', ''), a.correlation_id,
       'denied'
FROM added a
WHERE a.denied;

-- name: keep
-- The texts of records that were just written. Of one that was known before, nothing changes.
INSERT INTO request_contents (tenant_id, id, sealed, keep_until, principal)
SELECT :tenant, r.id, decode(a.sealed, 'base64'), a.keep_until, r.principal
FROM json_to_recordset(CAST(:texts AS json)) AS a (id text, sealed text, keep_until timestamptz)
JOIN request_records r ON r.tenant_id = :tenant AND r.id = CAST(substr(a.id, 5) AS uuid) AND r.kept_until = a.keep_until
ON CONFLICT (tenant_id, id) DO NOTHING;

-- name: find
SELECT r.* FROM request_records r WHERE r.tenant_id = :tenant AND r.id = :id AND r.namespace = :namespace;

-- name: recent
SELECT r.*
FROM request_records r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace
  AND r.id < coalesce(CAST(:before AS uuid), CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid))
ORDER BY r.id DESC
LIMIT :limit;

-- name: content
-- Noted first: who reads nothing is not noted.
WITH found AS MATERIALIZED (
    SELECT c.id, c.sealed
    FROM request_contents c
    JOIN request_records r ON r.tenant_id = :tenant AND r.id = c.id AND r.namespace = :namespace
    WHERE c.tenant_id = :tenant AND c.id = :id AND c.keep_until > (SELECT ao_now())
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, ao_actor(:tenant, :principal), :principal, :action, :request, :correlation_id FROM found
)
SELECT found.sealed FROM found;

-- name: counted
SELECT CAST(r.at AT TIME ZONE 'UTC' AS date) AS day, r.model, count(*) AS requests, count(*) FILTER (WHERE r.denied) AS denied
FROM request_records r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id >= :first AND r.at >= :since
GROUP BY 1, 2
ORDER BY 1, r.model COLLATE "C";
