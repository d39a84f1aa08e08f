-- Statements of the tenant directory. What the platform does to a tenant runs bound to that tenant.

-- name: create
-- No row: there was one, which was erased.
WITH made AS (
    INSERT INTO tenants (tenant_id, name, entitlements)
    SELECT :tenant, :name, CAST(:entitlements AS json)
    WHERE NOT EXISTS (SELECT FROM tenant_tombstones x WHERE x.tenant_id = :tenant)
    RETURNING *
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal, 'tenant.create', made.tenant_id, :correlation_id FROM made
)
SELECT * FROM made;

-- name: get
SELECT t.* FROM tenants t WHERE t.tenant_id = :tenant;

-- name: lock
-- Whoever changes it meanwhile waits.
SELECT t.* FROM tenants t WHERE t.tenant_id = :tenant FOR NO KEY UPDATE;

-- name: set_status
-- The table makes a version of each change.
-- Setting what is set already changes nothing, and is not noted.
WITH changed AS (
    UPDATE tenants t SET status = :status
    WHERE t.tenant_id = :tenant AND t.status <> :status RETURNING t.*
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal, CASE changed.status WHEN 'active' THEN 'tenant.enable' ELSE 'tenant.disable' END,
           changed.tenant_id, :correlation_id
    FROM changed
)
SELECT * FROM changed
UNION ALL
SELECT t.* FROM tenants t WHERE t.tenant_id = :tenant AND NOT EXISTS (SELECT FROM changed);

-- name: set_entitlements
-- As `set_status`: what is so already is not noted. A policy that changes is noted with its version.
WITH before AS (
    SELECT t.tenant_id, coalesce(CAST(t.entitlements -> 'policy' -> 'rules' AS text), '[]') AS rules
    FROM tenants t WHERE t.tenant_id = :tenant
),
changed AS (
    UPDATE tenants t SET entitlements = CAST(:entitlements AS json)
    WHERE t.tenant_id = :tenant AND CAST(t.entitlements AS text) <> CAST(:entitlements AS text)
    RETURNING t.*
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal, 'tenant.entitle', changed.tenant_id, :correlation_id FROM changed
    UNION ALL
    SELECT :tenant, :namespace, :actor, :principal, 'tenant.policy', :policy, :correlation_id
    FROM changed JOIN before USING (tenant_id)
    WHERE coalesce(CAST(changed.entitlements -> 'policy' -> 'rules' AS text), '[]') <> before.rules
)
SELECT * FROM changed
UNION ALL
SELECT t.* FROM tenants t WHERE t.tenant_id = :tenant AND NOT EXISTS (SELECT FROM changed);

-- name: list
-- Across tenants, for the platform.
SELECT * FROM ao_tenant_list(:after, :limit);

-- name: lock_keys
-- Before a key is made: of two at once the second counts the first's.
SELECT pg_advisory_xact_lock(174487311, hashtext(:tenant));

-- name: room
SELECT count(*) AS in_force FROM api_keys k
WHERE k.tenant_id = :tenant AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > ao_now());

-- name: get_key
SELECT k.* FROM api_keys k WHERE k.tenant_id = :tenant AND k.id = :key;

-- name: issue_key
-- No row: there is no such tenant.
WITH made AS (
    INSERT INTO api_keys (tenant_id, namespace, principal, scopes, roles, label, secret_sha256, expires_at)
    SELECT t.tenant_id, :namespace, :holder, CAST(:scopes AS json), CAST(:roles AS json), :label,
           CAST(:secret_sha256 AS bytea), CAST(:expires_at AS timestamptz)
    FROM tenants t
    WHERE t.tenant_id = :tenant
    RETURNING *
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal, 'key.issue', 'key_' || replace(CAST(made.id AS text), '-', ''),
           :correlation_id
    FROM made
)
SELECT * FROM made;

-- name: find_key
-- Before anybody is known: the key says which tenant it is.
SELECT * FROM ao_find_key_holder(:key);

-- name: revoke_key
WITH ended AS (
    UPDATE api_keys k SET revoked_at = ao_now() WHERE k.tenant_id = :tenant AND k.id = :key AND k.revoked_at IS NULL
    RETURNING k.id
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal, 'key.revoke', 'key_' || replace(CAST(ended.id AS text), '-', ''),
           :correlation_id
    FROM ended
)
SELECT k.id FROM api_keys k WHERE k.tenant_id = :tenant AND k.id = :key;

-- name: list_keys
SELECT k.*
FROM api_keys k
WHERE k.tenant_id = :tenant AND k.id > coalesce(CAST(:after AS uuid), CAST('00000000-0000-0000-0000-000000000000' AS uuid))
  AND (CAST(:namespace AS text) IS NULL OR k.namespace = :namespace)
ORDER BY k.id
LIMIT :limit;

-- name: rotate_key
-- No row: there is no such key. A row without an id: it has ended.
WITH asked AS MATERIALIZED (
    SELECT k.* FROM api_keys k WHERE k.tenant_id = :tenant AND k.id = :key FOR UPDATE
),
old AS (
    UPDATE api_keys k SET expires_at = least(k.expires_at, CAST(:old_until AS timestamptz))
    FROM asked
    WHERE k.tenant_id = asked.tenant_id AND k.id = asked.id AND asked.revoked_at IS NULL
      AND (asked.expires_at IS NULL OR asked.expires_at > ao_now())
    RETURNING k.*
),
made AS (
    INSERT INTO api_keys (tenant_id, namespace, principal, scopes, roles, label, secret_sha256, expires_at)
    SELECT old.tenant_id, old.namespace, old.principal, old.scopes, old.roles, old.label, CAST(:secret_sha256 AS bytea),
           CAST(:expires_at AS timestamptz)
    FROM old
    RETURNING *
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal, 'key.rotate', 'key_' || replace(CAST(old.id AS text), '-', ''),
           :correlation_id
    FROM old
    UNION ALL
    SELECT :tenant, :namespace, :actor, :principal, 'key.issue', 'key_' || replace(CAST(made.id AS text), '-', ''),
           :correlation_id
    FROM made
)
SELECT made.* FROM asked LEFT JOIN made ON true;

-- name: put_principal
-- No row: there is no such tenant. What is so already is not noted.
WITH put AS (
    INSERT INTO principals AS p (tenant_id, id, status, roles, scopes)
    SELECT t.tenant_id, :holder, :status, CAST(:roles AS json), CAST(:scopes AS json)
    FROM tenants t WHERE t.tenant_id = :tenant
    ON CONFLICT (tenant_id, id) DO UPDATE
        SET status = excluded.status, roles = excluded.roles, scopes = excluded.scopes
        WHERE (p.status, CAST(p.roles AS text), CAST(p.scopes AS text))
              IS DISTINCT FROM (excluded.status, CAST(excluded.roles AS text), CAST(excluded.scopes AS text))
    RETURNING p.*
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal,
           CASE put.status WHEN 'active' THEN 'principal.put' ELSE 'principal.disable' END, put.id, :correlation_id
    FROM put
),
shown AS (
    SELECT * FROM put
    UNION ALL
    SELECT p.* FROM principals p WHERE p.tenant_id = :tenant AND p.id = :holder AND NOT EXISTS (SELECT FROM put)
)
SELECT shown.status AS holder_status, shown.roles AS holder_roles, shown.scopes AS holder_scopes,
       shown.created_at AS holder_created_at
FROM shown;

-- name: get_principal
SELECT p.status AS holder_status, p.roles AS holder_roles, p.scopes AS holder_scopes, p.created_at AS holder_created_at
FROM principals p WHERE p.tenant_id = :tenant AND p.id = :holder;

-- name: list_principals
SELECT p.id AS principal, p.status AS holder_status, p.roles AS holder_roles, p.scopes AS holder_scopes,
       p.created_at AS holder_created_at
FROM principals p
WHERE p.tenant_id = :tenant AND p.id > :after COLLATE "C"
ORDER BY p.id COLLATE "C"
LIMIT :limit;

-- name: standing
-- No row: there is no such tenant. Who was erased is known by the name of the tombstone, unless it was put again.
SELECT t.status AS tenant_status, p.status AS holder_status, p.roles AS holder_roles, p.scopes AS holder_scopes,
       p.created_at AS holder_created_at
FROM tenants t
LEFT JOIN LATERAL (
    SELECT x.* FROM principals x
    WHERE x.tenant_id = t.tenant_id AND x.id IN (:holder, ao_erased_name(:tenant, :holder))
    ORDER BY x.id <> :holder
    LIMIT 1
) p ON true
WHERE t.tenant_id = :tenant;

-- name: let_act
-- No row: there is no such tenant. What is so already is not noted.
WITH put AS (
    INSERT INTO acting_principals (tenant_id, actor_tenant, principal)
    SELECT t.tenant_id, :actor_tenant, :holder FROM tenants t WHERE t.tenant_id = :tenant
    ON CONFLICT (tenant_id, actor_tenant, principal) DO NOTHING
    RETURNING *
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT put.tenant_id, :namespace, :actor, :principal, 'acting.allow', put.actor_tenant || '/' || put.principal,
           :correlation_id
    FROM put
)
SELECT t.tenant_id FROM tenants t WHERE t.tenant_id = :tenant;

-- name: end_acting
-- As `let_act`.
WITH gone AS (
    DELETE FROM acting_principals a
    WHERE a.tenant_id = :tenant AND a.actor_tenant = :actor_tenant AND a.principal = :holder
    RETURNING *
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT gone.tenant_id, :namespace, :actor, :principal, 'acting.end', gone.actor_tenant || '/' || gone.principal,
           :correlation_id
    FROM gone
)
SELECT t.tenant_id FROM tenants t WHERE t.tenant_id = :tenant;

-- name: list_acting
SELECT a.actor_tenant, a.principal, a.created_at
FROM acting_principals a
WHERE a.tenant_id = :tenant
ORDER BY a.actor_tenant COLLATE "C", a.principal COLLATE "C"
LIMIT :limit;

-- name: acting
-- No row: it may not, or there is no such tenant. Who was erased is known as in `standing`.
SELECT t.status AS tenant_status, p.status AS holder_status, p.roles AS holder_roles, p.scopes AS holder_scopes,
       p.created_at AS holder_created_at
FROM acting_principals a
JOIN tenants t ON t.tenant_id = a.tenant_id
LEFT JOIN LATERAL (
    SELECT x.* FROM principals x
    WHERE x.tenant_id = a.tenant_id AND x.id IN (:acting_as, ao_erased_name(:tenant, :acting_as))
    ORDER BY x.id <> :acting_as
    LIMIT 1
) p ON true
WHERE a.tenant_id = :tenant AND a.actor_tenant = :actor_tenant AND a.principal = :holder;

-- name: keys_used
SELECT ao_keys_used(CAST(:used AS json)) AS noted;
