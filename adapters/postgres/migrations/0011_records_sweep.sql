-- Replies are swept by their end, once its index is there.

GRANT CREATE ON SCHEMA agentos TO ao_def;
-- Whoever opens an entry sweeps a few old ones away, as before.
SET LOCAL ROLE ao_def;
CREATE OR REPLACE FUNCTION ao_replies_forget(p_limit integer) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH due AS MATERIALIZED (
        SELECT m.tenant_id, m.namespace, m.step_key
        FROM model_replies m
        WHERE m.forget_at <= (SELECT ao_now()) AND (m.completed OR m.lease_until <= (SELECT ao_now()))
        ORDER BY m.forget_at
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM model_replies m
    USING due
    WHERE m.tenant_id = due.tenant_id AND m.namespace = due.namespace AND m.step_key = due.step_key;
END;
RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;

DROP INDEX model_replies_by_age;
