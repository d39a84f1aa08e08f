-- The house: tenants and their keys, agents, runs with journals and events, the queue, memory, budgets and the audit.
--
-- Every table of tenants' rows has `tenant_id` first in its key and in every unique or foreign key, so that no constraint
-- can tell one tenant about another, and forced row-level security. There is no foreign key to `tenants` on the hot
-- paths: a tenant comes from a verified identity, and checking it again on every event would lock its row.

-- The function below is replaced, never parameterised: production pays nothing for it, and only the owner of the schema,
-- which no service connects as, can shift what the database takes for now. The tests do.
CREATE FUNCTION ao_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN clock_timestamp();

CREATE TABLE node (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Names this storage's history. Whoever restores an earlier state gives it another.
    stream_epoch text NOT NULL CHECK (stream_epoch ~ '^[a-z0-9]{1,32}$')
);
INSERT INTO node (stream_epoch) VALUES (substr(md5(gen_random_uuid()::text), 1, 12));

CREATE TABLE tenants (
    tenant_id    text        PRIMARY KEY CHECK (tenant_id ~ '^tnt_[a-z0-9][a-z0-9_-]{0,59}$'),
    name         text        NOT NULL,
    status       text        NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    entitlements json        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT ao_now()
);

CREATE TABLE api_keys (
    tenant_id     text        NOT NULL REFERENCES tenants (tenant_id),
    id            uuid        NOT NULL DEFAULT uuidv7(),
    namespace     text        NOT NULL,
    principal     text        NOT NULL,
    scopes        json        NOT NULL,
    roles         json        NOT NULL,
    label         text        NOT NULL,
    secret_sha256 bytea       NOT NULL CHECK (octet_length(secret_sha256) = 32),
    created_at    timestamptz NOT NULL DEFAULT ao_now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    PRIMARY KEY (tenant_id, id)
);
-- A token names its key, not its tenant.
CREATE INDEX api_keys_by_id ON api_keys (id);

CREATE TABLE agents (
    tenant_id  text        NOT NULL,
    namespace  text        NOT NULL,
    id         text        NOT NULL,
    version    integer     NOT NULL CHECK (version > 0),
    digest     text        NOT NULL,
    spec       json        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT ao_now(),
    PRIMARY KEY (tenant_id, namespace, id, version)
);

-- One row per worker process. Not a tenant's: a worker serves all of them.
CREATE TABLE workers (
    id          text        PRIMARY KEY,
    lease_until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Updated at every append: what changes most is in no index, bodies over half a kilobyte move out of the row, and pages
-- keep room, so that these updates stay inside their page (HOT).
CREATE TABLE runs (
    tenant_id           text        NOT NULL,
    id                  uuid        NOT NULL DEFAULT uuidv7(),
    namespace           text        NOT NULL,
    agent_id            text        NOT NULL,
    agent_version       integer     NOT NULL,
    agent_digest        text        NOT NULL,
    requester           json        NOT NULL,
    input               json        NOT NULL,
    context             json        NOT NULL,
    tool_allowlist      json,
    session_id          text,
    status              text        NOT NULL DEFAULT 'queued' CHECK (
        status IN ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'needs_operator')
    ),
    worker_id           text,
    epoch               integer     NOT NULL DEFAULT 0,
    last_sequence       integer     NOT NULL DEFAULT 0,
    recoveries          integer     NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL,
    queued_at           timestamptz NOT NULL,
    deadline_at         timestamptz,
    started_at          timestamptz,
    finished_at         timestamptz,
    cancel_requested_at timestamptz,
    output              json,
    error               json,
    prompt_tokens       bigint      NOT NULL DEFAULT 0,
    completion_tokens   bigint      NOT NULL DEFAULT 0,
    cost_nanousd        bigint      NOT NULL DEFAULT 0,
    usage_estimated     boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 70, toast_tuple_target = 512);
CREATE INDEX runs_listed ON runs (tenant_id, namespace, id);
-- For the sweeper and for recovery: only what is open, whatever the history's length.
CREATE INDEX runs_open ON runs (id) WHERE status IN ('queued', 'running');
CREATE INDEX runs_held ON runs (worker_id) WHERE status = 'running';

CREATE TABLE idempotency (
    tenant_id   text        NOT NULL,
    namespace   text        NOT NULL,
    principal   text        NOT NULL,
    route       text        NOT NULL,
    key         text        NOT NULL,
    fingerprint text        NOT NULL,
    run_id      uuid        NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, namespace, principal, route, key),
    FOREIGN KEY (tenant_id, run_id) REFERENCES runs (tenant_id, id)
);

CREATE TABLE steps (
    tenant_id    text        NOT NULL,
    run_id       uuid        NOT NULL,
    n            integer     NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('model', 'tool')),
    name         text        NOT NULL,
    effect       text        NOT NULL CHECK (effect IN ('pure', 'idempotent', 'transactional', 'unsafe')),
    status       text        NOT NULL CHECK (status IN ('started', 'completed', 'failed', 'unknown')),
    input        json        NOT NULL,
    input_digest text        NOT NULL,
    epoch        integer     NOT NULL,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz,
    output       json,
    error        json,
    usage        json        NOT NULL,
    PRIMARY KEY (tenant_id, run_id, n),
    FOREIGN KEY (tenant_id, run_id) REFERENCES runs (tenant_id, id)
) WITH (fillfactor = 80);

CREATE TABLE run_events (
    tenant_id      text        NOT NULL,
    run_id         uuid        NOT NULL,
    sequence       integer     NOT NULL CHECK (sequence > 0),
    event_id       uuid        NOT NULL DEFAULT uuidv7(),
    type           text        NOT NULL,
    time           timestamptz NOT NULL,
    data           json        NOT NULL,
    correlation_id text        NOT NULL,
    traceparent    text        NOT NULL,
    PRIMARY KEY (tenant_id, run_id, sequence),
    FOREIGN KEY (tenant_id, run_id) REFERENCES runs (tenant_id, id)
);

CREATE TABLE queue_messages (
    tenant_id  text        NOT NULL,
    id         uuid        NOT NULL DEFAULT uuidv7(),
    namespace  text        NOT NULL,
    requester  json        NOT NULL,
    body       bytea       NOT NULL,
    -- When it may be leased: after its delay, or when its lease ends.
    visible_at timestamptz NOT NULL,
    lease      uuid,
    attempt    integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 70);
-- Across tenants, oldest first. `visible_at` stays out of the index: leasing and extending are HOT updates.
CREATE INDEX queue_messages_by_age ON queue_messages (id);

CREATE TABLE memory_items (
    tenant_id  text        NOT NULL,
    namespace  text        NOT NULL,
    key        text        NOT NULL,
    value      json        NOT NULL,
    metadata   jsonb       NOT NULL,
    words      integer     NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, namespace, key)
);
-- An inverted index of our own: equality of text is leakproof, so that row-level security can use it. GIN's operators
-- aren't, and would be skipped.
CREATE TABLE memory_words (
    tenant_id text NOT NULL,
    namespace text NOT NULL,
    word      text NOT NULL,
    key       text NOT NULL,
    PRIMARY KEY (tenant_id, namespace, word, key),
    FOREIGN KEY (tenant_id, namespace, key) REFERENCES memory_items (tenant_id, namespace, key) ON DELETE CASCADE
);
CREATE INDEX memory_words_by_item ON memory_words (tenant_id, namespace, key);

CREATE TABLE budget_windows (
    tenant_id    text        NOT NULL,
    window_start timestamptz NOT NULL,
    settled      bigint      NOT NULL CHECK (settled >= 0),
    held         bigint      NOT NULL CHECK (held >= 0),
    PRIMARY KEY (tenant_id, window_start)
) WITH (fillfactor = 50);

CREATE TABLE budget_holds (
    tenant_id    text        NOT NULL,
    id           uuid        NOT NULL DEFAULT uuidv7(),
    window_start timestamptz NOT NULL,
    amount       bigint      NOT NULL CHECK (amount >= 0),
    expires_at   timestamptz NOT NULL,
    -- What it came to, once it is over.
    spent        bigint CHECK (spent >= 0),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, window_start) REFERENCES budget_windows (tenant_id, window_start)
);
CREATE INDEX budget_holds_open ON budget_holds (tenant_id, expires_at) WHERE spent IS NULL;

CREATE TABLE audit_log (
    tenant_id      text        NOT NULL,
    id             uuid        NOT NULL DEFAULT uuidv7(),
    at             timestamptz NOT NULL DEFAULT ao_now(),
    namespace      text        NOT NULL,
    actor_tenant   text        NOT NULL,
    principal      text        NOT NULL,
    action         text        NOT NULL,
    subject        text        NOT NULL,
    correlation_id text        NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

-- Wall two. The setting is NULL before its first use and '' after its transaction: both mean nobody.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'tenants', 'api_keys', 'agents', 'runs', 'idempotency', 'steps', 'run_events', 'queue_messages', 'memory_items',
        'memory_words', 'budget_windows', 'budget_holds', 'audit_log'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            $p$CREATE POLICY own_tenant ON %I TO ao_app
               USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))
               WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))$p$, name);
    END LOOP;
END
$$;

-- What the services may do: no more than their statements need. Events and the audit are only ever added to.
GRANT SELECT ON node, workers TO ao_app;
GRANT SELECT, INSERT, UPDATE ON tenants, api_keys, runs, steps, budget_windows, budget_holds TO ao_app;
GRANT SELECT, INSERT ON agents, idempotency, run_events, audit_log TO ao_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON queue_messages, memory_items, memory_words TO ao_app;

GRANT SELECT ON ALL TABLES IN SCHEMA agentos TO ao_admin;
GRANT INSERT, UPDATE, DELETE ON tenants, api_keys, agents, runs, idempotency, steps, queue_messages, memory_items,
    memory_words, budget_windows, budget_holds, workers TO ao_admin;

-- What must cross tenants does so in these functions only. They belong to a role that bypasses row-level security and that
-- nobody can log in as, resolve names in our schema only, and give away no more than the caller's next step needs.
GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT ON tenants, api_keys, runs TO ao_def;
GRANT SELECT, UPDATE ON queue_messages TO ao_def;
GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO ao_def;

CREATE FUNCTION ao_worker_renew(p_worker text, p_duration interval) RETURNS SETOF uuid
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    INSERT INTO workers (id, lease_until) VALUES (p_worker, ao_now() + p_duration)
        ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until;
    -- A worker has a new id each boot: forget those that can't come back.
    DELETE FROM workers WHERE lease_until < ao_now() - interval '1 day';
    SELECT id FROM runs WHERE status = 'running' AND worker_id = p_worker AND cancel_requested_at IS NOT NULL;
END;

CREATE FUNCTION ao_worker_retire(p_worker text) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    DELETE FROM workers WHERE id = p_worker;
END;

CREATE FUNCTION ao_orphans(p_queued_for interval, p_limit integer) RETURNS TABLE (id uuid, requester json)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now)
    SELECT r.id, r.requester
    FROM runs r, t
    WHERE r.status IN ('queued', 'running')
      AND CASE r.status
          WHEN 'queued' THEN r.queued_at < t.now - p_queued_for
          ELSE NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = r.worker_id AND w.lease_until > t.now)
      END
    ORDER BY r.id
    LIMIT p_limit;
END;

CREATE FUNCTION ao_queue_lease(p_limit integer, p_duration interval) RETURNS SETOF queue_messages
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now),
    picked AS MATERIALIZED (
        SELECT m.tenant_id, m.id
        FROM queue_messages m, t
        WHERE m.visible_at <= t.now
        ORDER BY m.id
        LIMIT p_limit
        FOR UPDATE OF m SKIP LOCKED
    )
    UPDATE queue_messages m
    SET lease = uuidv7(), visible_at = t.now + p_duration, attempt = m.attempt + 1
    FROM picked, t
    WHERE m.tenant_id = picked.tenant_id AND m.id = picked.id
    RETURNING m.*;
END;

CREATE FUNCTION ao_queue_depth() RETURNS TABLE (ready bigint, leased bigint)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now)
    SELECT count(*) FILTER (WHERE m.visible_at <= t.now),
           count(*) FILTER (WHERE m.visible_at > t.now AND m.lease IS NOT NULL)
    FROM queue_messages m, t;
END;

CREATE FUNCTION ao_find_key(p_id uuid) RETURNS TABLE (
    tenant_id text, id uuid, namespace text, principal text, scopes json, roles json, label text, secret_sha256 bytea,
    created_at timestamptz, expires_at timestamptz, tenant_status text
)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT k.tenant_id, k.id, k.namespace, k.principal, k.scopes, k.roles, k.label, k.secret_sha256, k.created_at,
           k.expires_at, t.status
    FROM api_keys k
    JOIN tenants t ON t.tenant_id = k.tenant_id
    WHERE k.id = p_id AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > ao_now());
END;

CREATE FUNCTION ao_tenant_list(p_after text, p_limit integer) RETURNS SETOF tenants
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT t.* FROM tenants t WHERE t.tenant_id > p_after ORDER BY t.tenant_id LIMIT p_limit;
END;

DO $$
DECLARE
    signature regprocedure;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'ao_worker_renew(text, interval)', 'ao_worker_retire(text)', 'ao_orphans(interval, integer)',
        'ao_queue_lease(integer, interval)', 'ao_queue_depth()', 'ao_find_key(uuid)', 'ao_tenant_list(text, integer)'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO ao_app', signature);
        EXECUTE format('ALTER FUNCTION %s OWNER TO ao_def', signature);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
