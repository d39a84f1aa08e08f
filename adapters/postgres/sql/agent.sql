-- Statements of the agent registry. A version is never changed.

-- name: lock
-- Publishers of the same agent come one after the other.
SELECT pg_advisory_xact_lock(
    hashtextextended(CAST(:tenant AS text) || '/' || CAST(:namespace AS text) || '/' || CAST(:agent AS text), 0)
);

-- name: publish
WITH newest AS (
    SELECT * FROM agents a
    WHERE a.tenant_id = :tenant AND a.namespace = :namespace AND a.id = :agent
    ORDER BY a.version DESC
    LIMIT 1
),
made AS (
    INSERT INTO agents (tenant_id, namespace, id, version, digest, spec)
    SELECT :tenant, :namespace, :agent, coalesce((SELECT version FROM newest), 0) + 1, :digest, CAST(:spec AS json)
    WHERE (SELECT digest FROM newest) IS DISTINCT FROM :digest
    RETURNING *
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, ao_actor(:tenant, :principal), :principal, 'agent.publish', made.id || '@' || made.version, :correlation_id FROM made
)
SELECT * FROM made
UNION ALL
SELECT * FROM newest WHERE NOT EXISTS (SELECT FROM made);

-- name: get
-- Several agents, or one: each in the version asked for, or the newest.
SELECT asked.place, found.*
FROM json_to_recordset(CAST(:asks AS json)) AS asked (place integer, tenant text, namespace text, agent text, version bigint),
     LATERAL (
         SELECT a.*
         FROM agents a
         WHERE a.tenant_id = asked.tenant AND a.namespace = asked.namespace AND a.id = asked.agent
           AND a.version = coalesce(asked.version, a.version)
         ORDER BY a.version DESC
         LIMIT 1
     ) found;

-- name: list
SELECT DISTINCT ON (a.id) a.*
FROM agents a
WHERE a.tenant_id = :tenant AND a.namespace = :namespace AND a.id > :after
ORDER BY a.id, a.version DESC
LIMIT :limit;
