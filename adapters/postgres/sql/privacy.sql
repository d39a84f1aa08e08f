-- Statements of Privacy. Each runs bound to its tenant, as the role of administration. Rows go through functions that act for
-- the tenant that the transaction is bound to, and for nobody else.

-- name: lock
-- Before anything that depends on what is held.
SELECT ao_lock_holds(:tenant);

-- name: lock_upkeep
-- Before `lock`: no step of upkeep removes anything until the hold is there for it to see.
SELECT pg_advisory_xact_lock(174487310);

-- name: standing
SELECT EXISTS (SELECT FROM tenants t WHERE t.tenant_id = :tenant) AS known,
       ao_held(:tenant, :subject) AS held,
       ao_open_runs_of(:subject) AS open_runs,
       EXISTS (SELECT FROM ao_tenant_stays()) AS elsewhere;

-- name: tombstone
SELECT x.* FROM subject_tombstones x WHERE x.tenant_id = :tenant AND x.name = :name FOR UPDATE;

-- name: begin
-- Anew where it was done before. The subject is barred from here on.
WITH made AS (
    INSERT INTO subject_tombstones AS x (tenant_id, name, status, stage, counts, actor_tenant, principal)
    VALUES (:tenant, :name, 'erasing', :stage, CAST(:counts AS json), :actor, :principal)
    ON CONFLICT (tenant_id, name) DO UPDATE
        SET status = 'erasing', stage = excluded.stage, after = NULL, counts = excluded.counts, begun_at = excluded.begun_at,
            erased_at = NULL, actor_tenant = excluded.actor_tenant, principal = excluded.principal
    RETURNING x.*
),
barred AS (
    INSERT INTO principals (tenant_id, id, status)
    SELECT made.tenant_id, :subject, 'disabled' FROM made
    ON CONFLICT (tenant_id, id) DO UPDATE SET status = 'disabled'
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT made.tenant_id, :namespace, :actor, :principal, :action, made.name, :correlation_id FROM made
)
SELECT * FROM made;

-- name: begin_there
-- In a home, of an erasing that began in the shared database, which says who is barred.
WITH made AS (
    INSERT INTO subject_tombstones AS x (tenant_id, name, status, stage, counts, begun_at, actor_tenant, principal)
    VALUES (:tenant, :name, 'erasing', :stage, CAST(:counts AS json), CAST(:begun AS timestamptz), :actor, :principal)
    ON CONFLICT (tenant_id, name) DO UPDATE
        SET status = 'erasing', stage = excluded.stage, after = NULL, counts = excluded.counts, begun_at = excluded.begun_at,
            erased_at = NULL, actor_tenant = excluded.actor_tenant, principal = excluded.principal
    RETURNING x.*
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT made.tenant_id, :namespace, :actor, :principal, :action, made.name, :correlation_id FROM made
)
SELECT * FROM made;

-- name: erase_runs
SELECT * FROM ao_erase_runs(:subject, CAST(:after AS uuid), :limit);

-- name: erase_requests
SELECT * FROM ao_erase_requests(:subject, CAST(:after AS uuid), :limit);

-- name: erase_usage
SELECT * FROM ao_erase_usage(:subject, :after, :limit);

-- name: erase_rest
SELECT ao_erase_rest(:stage, :subject, :limit) AS removed;

-- name: erase_audit
SELECT ao_audit_erase(:first, :last, :namespace, :actor, :principal, :correlation_id, :subject) AS removed,
       (SELECT h.seq FROM audit_heads h WHERE h.tenant_id = :tenant) AS head;

-- name: late
SELECT ao_runs_since(:subject, CAST(:begun AS timestamptz)) AS late;

-- name: end
SELECT ao_end_erasing(:subject);

-- name: keep
UPDATE subject_tombstones x SET stage = :stage, after = :after, counts = CAST(:counts AS json)
WHERE x.tenant_id = :tenant AND x.name = :name
RETURNING x.*;

-- name: done
WITH ended AS (
    UPDATE subject_tombstones x SET status = 'erased', erased_at = ao_now()
    WHERE x.tenant_id = :tenant AND x.name = :name
    RETURNING x.*
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id, detail)
    SELECT ended.tenant_id, :namespace, :actor, :principal, :action, ended.name, :correlation_id, :detail FROM ended
)
SELECT * FROM ended;

-- name: erasures
SELECT x.* FROM subject_tombstones x
WHERE x.tenant_id = :tenant
ORDER BY x.status = 'erased', x.begun_at DESC, x.name
LIMIT :limit;

-- name: one_hold
SELECT h.* FROM legal_holds h WHERE h.tenant_id = :tenant AND h.id = :hold;

-- name: hold
WITH made AS (
    INSERT INTO legal_holds (tenant_id, id, subject, reason, placed_by)
    SELECT t.tenant_id, coalesce(CAST(:hold AS uuid), uuidv7()), :subject, :reason, :principal
    FROM tenants t WHERE t.tenant_id = :tenant
    RETURNING *
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id, detail)
    SELECT made.tenant_id, :namespace, :actor, :principal, :action, coalesce(made.subject, :everybody), :correlation_id,
           'hld_' || replace(CAST(made.id AS text), '-', '')
    FROM made
)
SELECT * FROM made;

-- name: release
-- What was looked at while it was held is looked at again.
WITH ended AS (
    UPDATE legal_holds h SET released_at = ao_now()
    WHERE h.tenant_id = :tenant AND h.id = :hold AND h.released_at IS NULL
    RETURNING h.*
),
again AS (
    UPDATE retention_rules r SET swept_until = '-infinity' FROM ended WHERE r.tenant_id = ended.tenant_id
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id, detail)
    SELECT ended.tenant_id, :namespace, :actor, :principal, :action, coalesce(ended.subject, :everybody), :correlation_id,
           'hld_' || replace(CAST(ended.id AS text), '-', '')
    FROM ended
)
SELECT * FROM ended;

-- name: holds
SELECT h.* FROM legal_holds h WHERE h.tenant_id = :tenant AND h.released_at IS NULL ORDER BY h.placed_at, h.id LIMIT :limit;

-- name: known
SELECT t.tenant_id, EXISTS (SELECT FROM ao_tenant_stays()) AS elsewhere FROM tenants t WHERE t.tenant_id = :tenant;

-- name: rules
SELECT r.class, r.days FROM retention_rules r WHERE r.tenant_id = :tenant;

-- name: retain
INSERT INTO retention_rules AS r (tenant_id, class, days)
SELECT :tenant, d.key, CAST(d.value AS integer) FROM json_each_text(CAST(:days AS json)) d
ON CONFLICT (tenant_id, class) DO UPDATE SET days = excluded.days, swept_until = '-infinity' WHERE r.days <> excluded.days;

-- name: unretain
DELETE FROM retention_rules r
WHERE r.tenant_id = :tenant AND r.class IN (SELECT c FROM json_array_elements_text(CAST(:classes AS json)) AS c);

-- name: note
INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id, detail)
VALUES (:tenant, :namespace, :actor, :principal, :action, :tenant, :correlation_id, :detail);

-- name: kept
-- What a home has a copy of.
SELECT (SELECT coalesce(json_agg(h), '[]') FROM (
            SELECT x.id, x.subject, x.reason, x.placed_by, x.placed_at FROM legal_holds x
            WHERE x.tenant_id = :tenant AND x.released_at IS NULL
        ) h) AS holds,
       (SELECT coalesce(json_agg(r), '[]') FROM (
            SELECT x.class, x.days FROM retention_rules x WHERE x.tenant_id = :tenant
        ) r) AS rules;

-- name: copy_kept
SELECT ao_copy_kept(CAST(:holds AS json), CAST(:rules AS json));
