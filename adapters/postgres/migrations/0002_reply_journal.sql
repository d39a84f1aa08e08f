-- What came of each model call, by the key of its step: see ports/reply_journal.py.

-- Extending a lease stays inside the page (HOT): nothing of it is in an index.
CREATE TABLE model_replies (
    tenant_id          text        NOT NULL,
    namespace          text        NOT NULL,
    step_key           text        NOT NULL,
    digest             text        NOT NULL,
    -- Of the last holder. Abandoning gives it a value that nobody knows.
    lease              uuid        NOT NULL,
    lease_until        timestamptz NOT NULL,
    -- Somebody before that holder may have made the call.
    possible_duplicate boolean     NOT NULL DEFAULT false,
    cancel_requested   boolean     NOT NULL DEFAULT false,
    completed          boolean     NOT NULL DEFAULT false,
    outcome            json,
    -- Opened, or completed: what retention counts from.
    changed_at         timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, namespace, step_key)
) WITH (fillfactor = 80);
CREATE INDEX model_replies_by_age ON model_replies (changed_at);

ALTER TABLE model_replies ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_replies FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON model_replies TO ao_app
    USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')))
    WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')));

GRANT SELECT, INSERT, UPDATE, DELETE ON model_replies TO ao_app, ao_admin;

-- Whoever opens an entry sweeps a few old ones away, whoever's they are: no job is needed, and a tenant that went silent
-- leaves nothing behind. How old is not the caller's to say: it must never reach what is still of use.
GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT, UPDATE, DELETE ON model_replies TO ao_def;
CREATE FUNCTION ao_replies_forget(p_limit integer) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH due AS MATERIALIZED (
        SELECT m.tenant_id, m.namespace, m.step_key
        FROM model_replies m
        WHERE m.changed_at <= (SELECT ao_now() - interval '7 days') AND (m.completed OR m.lease_until <= (SELECT ao_now()))
        ORDER BY m.changed_at
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM model_replies m
    USING due
    WHERE m.tenant_id = due.tenant_id AND m.namespace = due.namespace AND m.step_key = due.step_key;
END;
REVOKE ALL ON FUNCTION ao_replies_forget(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_replies_forget(integer) TO ao_app;
ALTER FUNCTION ao_replies_forget(integer) OWNER TO ao_def;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
