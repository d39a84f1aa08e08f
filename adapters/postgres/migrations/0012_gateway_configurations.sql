-- The gateway's configuration in versions, see ports/gateway_configuration.py. It is the node's: no tenant's rows, and no
-- row-level security. What is in force is the highest version.

CREATE TABLE gateway_configurations (
    version         bigint      PRIMARY KEY CHECK (version > 0),
    document        json        NOT NULL,
    digest          text        NOT NULL,
    comment         text        NOT NULL,
    -- The version that this one says again.
    restores        bigint      REFERENCES gateway_configurations (version),
    created_at      timestamptz NOT NULL DEFAULT ao_now(),
    actor_tenant    text        NOT NULL,
    principal       text        NOT NULL,
    correlation_id  text        NOT NULL,
    idempotency_key text        NOT NULL,
    -- What repeats under that key must have in common.
    request         text        NOT NULL,
    UNIQUE (actor_tenant, principal, idempotency_key)
);

GRANT SELECT ON gateway_configurations TO ao_app, ao_admin;

-- The one way to change it. No service can add a version without a line in the audit, change one, or take one away. The
-- line is the caller's own: whose that is, the transaction says, and not an argument.
GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT, INSERT ON gateway_configurations TO ao_def;
GRANT INSERT ON audit_log TO ao_def;
CREATE FUNCTION ao_gateway_configure(
    p_if_match bigint, p_document json, p_digest text, p_restores bigint, p_comment text, p_namespace text,
    p_principal text, p_correlation_id text, p_key text, p_request text
) RETURNS SETOF gateway_configurations
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH newest AS MATERIALIZED (
        SELECT coalesce(max(c.version), 0) AS version FROM gateway_configurations c
    ),
    said AS MATERIALIZED (
        SELECT p_document AS document, p_digest AS digest WHERE p_restores IS NULL
        UNION ALL
        SELECT c.document, c.digest FROM gateway_configurations c WHERE c.version = p_restores
    ),
    made AS (
        INSERT INTO gateway_configurations (
            version, document, digest, comment, restores, actor_tenant, principal, correlation_id, idempotency_key, request
        )
        SELECT newest.version + 1, said.document, said.digest, p_comment, p_restores, current_setting('app.tenant_id'),
               p_principal, p_correlation_id, p_key, p_request
        FROM newest, said
        WHERE p_if_match IS NULL OR newest.version = p_if_match
        RETURNING *
    ),
    noted AS (
        INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
        SELECT made.actor_tenant, p_namespace, made.actor_tenant, p_principal,
               CASE WHEN p_restores IS NULL THEN 'gateway.configure' ELSE 'gateway.restore' END,
               'gateway_configuration@' || made.version, p_correlation_id
        FROM made
    )
    SELECT * FROM made;
END;
REVOKE ALL ON FUNCTION ao_gateway_configure(
    bigint, json, text, bigint, text, text, text, text, text, text
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_gateway_configure(bigint, json, text, bigint, text, text, text, text, text, text) TO ao_app;
ALTER FUNCTION ao_gateway_configure(bigint, json, text, bigint, text, text, text, text, text, text) OWNER TO ao_def;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
