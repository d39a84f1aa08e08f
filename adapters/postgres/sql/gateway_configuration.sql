-- Statements of the gateway's configuration, which is the node's and no tenant's.

-- name: current
SELECT c.* FROM gateway_configurations c WHERE c.version > :newer_than ORDER BY c.version DESC LIMIT 1;

-- name: newest
SELECT c.version FROM gateway_configurations c ORDER BY c.version DESC LIMIT 1;

-- name: get
SELECT c.* FROM gateway_configurations c WHERE c.version = :version;

-- name: by_key
SELECT c.* FROM gateway_configurations c
WHERE c.actor_tenant = :tenant AND c.principal = :principal AND c.idempotency_key = :key;

-- name: list
SELECT c.version, c.digest, c.comment, c.restores, c.created_at, c.actor_tenant, c.principal
FROM gateway_configurations c
WHERE c.version < :before
ORDER BY c.version DESC
LIMIT :limit;

-- name: add
-- No row: another version is the newest, or there is none to restore.
SELECT * FROM ao_gateway_configure(
    :if_match, CAST(:document AS json), :digest, :restores, :comment, :namespace, :principal, :correlation_id, :key, :request
);
