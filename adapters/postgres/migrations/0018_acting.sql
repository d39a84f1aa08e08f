-- Who of another tenant may act for a tenant: kept with the tenant that is acted for, said by the platform, and gone with it.
-- And when a key was used last, which is written seldom and for many keys at once.

CREATE TABLE acting_principals (
    tenant_id    text        NOT NULL REFERENCES tenants (tenant_id),
    actor_tenant text        NOT NULL,
    principal    text        NOT NULL CHECK (length(principal) BETWEEN 1 AND 255),
    created_at   timestamptz NOT NULL DEFAULT ao_now(),
    PRIMARY KEY (tenant_id, actor_tenant, principal),
    CONSTRAINT acting_for_another CHECK (actor_tenant <> tenant_id)
);
SELECT ao_guard_events('acting_principals');
GRANT SELECT ON acting_principals TO ao_app, ao_admin;
GRANT INSERT, DELETE ON acting_principals TO ao_control;

ALTER TABLE api_keys ADD COLUMN last_used_at timestamptz;

-- The verifiers of every process note uses here, of keys of every tenant; a row that somebody else holds is left for later.
GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT UPDATE (last_used_at) ON api_keys TO ao_def;
CREATE FUNCTION ao_keys_used(p_used json) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH used AS MATERIALIZED (
        SELECT u.id, u.at FROM json_to_recordset(p_used) AS u (id uuid, at timestamptz)
    ),
    free AS MATERIALIZED (
        SELECT k.tenant_id, k.id, used.at
        FROM used JOIN api_keys k ON k.id = used.id
        WHERE k.last_used_at IS NULL OR k.last_used_at < used.at
        FOR UPDATE OF k SKIP LOCKED
    ),
    noted AS (
        UPDATE api_keys k SET last_used_at = least(free.at, ao_now())
        FROM free WHERE k.tenant_id = free.tenant_id AND k.id = free.id
        RETURNING k.id
    )
    SELECT count(*) FROM noted;
END;
REVOKE ALL ON FUNCTION ao_keys_used(json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_keys_used(json) TO ao_app;
ALTER FUNCTION ao_keys_used(json) OWNER TO ao_def;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
