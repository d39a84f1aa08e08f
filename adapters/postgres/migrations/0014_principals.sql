-- Principals: who was barred from a tenant, and what somebody's keys and tokens may do at most. Who has no row here is
-- active and bound by keys and tokens alone.

CREATE TABLE principals (
    tenant_id  text        NOT NULL REFERENCES tenants (tenant_id),
    id         text        NOT NULL CHECK (length(id) BETWEEN 1 AND 255),
    status     text        NOT NULL CHECK (status IN ('active', 'disabled')),
    -- Both NULL: as its keys and tokens were issued.
    roles      json,
    scopes     json,
    created_at timestamptz NOT NULL DEFAULT ao_now(),
    PRIMARY KEY (tenant_id, id),
    CONSTRAINT principals_bound CHECK ((roles IS NULL) = (scopes IS NULL))
);
SELECT ao_guard_events('principals');
GRANT SELECT, INSERT, UPDATE ON principals TO ao_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON principals TO ao_admin;
GRANT SELECT ON principals TO ao_def;

GRANT CREATE ON SCHEMA agentos TO ao_def;
-- Beside `ao_find_key`, which processes of the version before still call.
CREATE FUNCTION ao_find_key_holder(p_id uuid) RETURNS TABLE (
    tenant_id text, id uuid, namespace text, principal text, scopes json, roles json, label text, secret_sha256 bytea,
    created_at timestamptz, expires_at timestamptz, tenant_status text,
    holder_status text, holder_roles json, holder_scopes json, holder_created_at timestamptz
)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT k.tenant_id, k.id, k.namespace, k.principal, k.scopes, k.roles, k.label, k.secret_sha256, k.created_at,
           k.expires_at, t.status, p.status, p.roles, p.scopes, p.created_at
    FROM api_keys k
    JOIN tenants t ON t.tenant_id = k.tenant_id
    LEFT JOIN principals p ON p.tenant_id = k.tenant_id AND p.id = k.principal
    WHERE k.id = p_id AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > ao_now());
END;
REVOKE ALL ON FUNCTION ao_find_key_holder(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_find_key_holder(uuid) TO ao_app;
ALTER FUNCTION ao_find_key_holder(uuid) OWNER TO ao_def;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
