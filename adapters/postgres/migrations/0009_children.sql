-- Runs that work for other runs.

ALTER TABLE runs
    -- Not a foreign key: that run may be gone before this one is.
    ADD COLUMN parent_id uuid,
    ADD COLUMN parent_step integer CHECK (parent_step > 0),
    ADD COLUMN depth integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT runs_parent CHECK (
        (parent_id IS NULL) = (parent_step IS NULL) AND (parent_id IS NULL) = (depth = 0) AND depth >= 0
    );
-- What is in these never changes, or changes with the status, which other indexes have in them already: no update that stays
-- in its page today leaves it for them.
CREATE INDEX runs_by_parent ON runs (tenant_id, parent_id, id) WHERE parent_id IS NOT NULL;
CREATE INDEX runs_open_children ON runs (id)
    WHERE parent_id IS NOT NULL AND status IN ('queued', 'running', 'waiting', 'needs_operator');
CREATE INDEX runs_waiting ON runs (id) WHERE status = 'waiting';

ALTER TABLE steps
    DROP CONSTRAINT steps_kind_check,
    ADD CONSTRAINT steps_kind_check CHECK (kind IN ('model', 'tool', 'agent')) NOT VALID;

GRANT CREATE ON SCHEMA agentos TO ao_def;

CREATE FUNCTION ao_adrift(p_limit integer) RETURNS TABLE (id uuid, requester json, due text)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now)
    SELECT r.id, r.requester, 'wake'
    FROM runs r, t
    WHERE r.status = 'waiting'
      AND (
          r.cancel_requested_at IS NOT NULL
          OR r.deadline_at <= t.now
          OR NOT EXISTS (
              SELECT FROM runs c
              WHERE c.tenant_id = r.tenant_id AND c.parent_id = r.id AND c.status NOT IN ('succeeded', 'failed', 'cancelled')
          )
      )
    UNION ALL
    SELECT r.id, r.requester, 'cancel'
    FROM runs r
    JOIN runs p ON p.tenant_id = r.tenant_id AND p.id = r.parent_id
    WHERE r.parent_id IS NOT NULL AND r.status IN ('queued', 'running', 'waiting', 'needs_operator')
      AND r.cancel_requested_at IS NULL AND p.status IN ('succeeded', 'failed', 'cancelled')
    ORDER BY 1
    LIMIT p_limit;
END;
REVOKE ALL ON FUNCTION ao_adrift(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_adrift(integer) TO ao_app;
ALTER FUNCTION ao_adrift(integer) OWNER TO ao_def;

REVOKE CREATE ON SCHEMA agentos FROM ao_def;
