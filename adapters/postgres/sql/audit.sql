-- Statements of the audit. Links are written by a trigger at the end of each transaction, see the migrations.

-- name: note
INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id, outcome, detail)
SELECT a.tenant, a.namespace, a.actor, a.principal, a.action, a.subject, a.correlation_id, a.outcome, a.detail
FROM json_to_recordset(CAST(:asks AS json)) AS a (
    place integer, tenant text, namespace text, actor text, principal text, action text, subject text, correlation_id text,
    outcome text, detail text
)
ORDER BY a.tenant, a.place;

-- name: query
SELECT c.seq, c.hash, a.*
FROM audit_chain c
JOIN audit_log a ON a.tenant_id = c.tenant_id AND a.id = c.entry
WHERE c.tenant_id = :tenant AND c.seq < CAST(:before AS bigint)
  AND (CAST(:action AS text) IS NULL OR a.action = :action)
  AND (CAST(:prefix AS text) IS NULL OR starts_with(a.action, :prefix))
  AND (CAST(:principal AS text) IS NULL OR a.principal = :principal)
  AND (CAST(:subject AS text) IS NULL OR a.subject = :subject)
  AND (CAST(:outcome AS text) IS NULL OR a.outcome = :outcome)
  AND (CAST(:since AS timestamptz) IS NULL OR a.at >= :since)
  AND (CAST(:until AS timestamptz) IS NULL OR a.at < :until)
ORDER BY c.seq DESC
LIMIT :limit;

-- name: chain
SELECT c.seq, c.hash, c.entry, a.*
FROM audit_chain c
LEFT JOIN audit_log a ON a.tenant_id = c.tenant_id AND a.id = c.entry
WHERE c.tenant_id = :tenant AND c.seq > CAST(:after AS bigint)
ORDER BY c.seq
LIMIT :limit;

-- name: head
SELECT h.seq, h.hash FROM audit_heads h WHERE h.tenant_id = :tenant;

-- name: heads
SELECT * FROM ao_audit_heads(:after, :limit);

-- name: erase
SELECT ao_audit_erase(
    :first, :last, :namespace, :actor, :principal, :correlation_id, CAST(:whose AS text)
) AS gone
WHERE current_setting('app.tenant_id') = :tenant;

-- name: stays
SELECT s.home FROM ao_tenant_stays() s;
