-- Tenants may live in a database of their own, a home, and move there while they work. See ADR 0039.
--
-- While a tenant leaves, triggers of that tenant's rows alone note what changes, and once it has left they refuse. They are
-- made when a move begins and dropped when its remains are cleared: nobody else pays for them.

-- In the shared database: who lives elsewhere. Nobody else is in here.
CREATE TABLE tenant_homes (
    tenant text        PRIMARY KEY,
    home   text        NOT NULL CHECK (home ~ '^[a-z][a-z0-9_-]{0,31}$' AND home <> 'shared'),
    since  timestamptz NOT NULL DEFAULT ao_now()
);

-- In the shared database: where tenants have ever lived beside it, or were on their way to. Of each the audit has a chain
-- there, for good, and so has this table.
CREATE TABLE tenant_stays (
    tenant text        NOT NULL,
    home   text        NOT NULL CHECK (home ~ '^[a-z][a-z0-9_-]{0,31}$' AND home <> 'shared'),
    since  timestamptz NOT NULL DEFAULT ao_now(),
    PRIMARY KEY (tenant, home)
);

-- In each database: whose rows are not, or not only, for use here. 'arriving': still written elsewhere. 'leaving': still
-- written here. 'left': read and written elsewhere, what is here are remains.
CREATE TABLE tenant_moves (
    tenant    text        PRIMARY KEY,
    state     text        NOT NULL CHECK (state IN ('arriving', 'leaving', 'left')),
    -- Where it comes from or goes to.
    other     text        NOT NULL,
    began_at  timestamptz NOT NULL DEFAULT ao_now(),
    left_at   timestamptz,
    -- Of a tenant that leaves: how far the first copy has come.
    reached   json        NOT NULL DEFAULT '{}'
);

-- Which rows of a tenant that leaves were written since, by their keys.
CREATE TABLE tenant_changes (
    tenant text   NOT NULL,
    n      bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    name   text   NOT NULL,
    key    jsonb  NOT NULL,
    PRIMARY KEY (tenant, n)
);

-- In a home: whose line of `tenants` is a copy of the directory's.
CREATE TABLE tenant_copies (tenant text PRIMARY KEY);

-- These are the node's, not the tenants': nobody gets at them but the definer's functions and who moves tenants, and they are
-- neither exported nor erased with a tenant's rows (which is why their column has another name).
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenant_homes', 'tenant_stays', 'tenant_moves', 'tenant_changes', 'tenant_copies'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    END LOOP;
END
$$;
GRANT SELECT ON tenant_homes, tenant_stays, tenant_moves, tenant_changes, tenant_copies TO ao_admin;

-- No service writes to any of these. Whoever moves tenants connects as the owner and becomes this role, which services can't.
GRANT CREATE ON SCHEMA agentos TO ao_def;
GRANT SELECT, INSERT, UPDATE, DELETE ON tenant_homes, tenant_moves, tenant_changes, tenant_copies TO ao_def;
GRANT SELECT, INSERT, DELETE ON tenant_stays TO ao_def;
GRANT SELECT, INSERT, UPDATE, DELETE ON agents, runs, idempotency, steps, run_events, blobs, blob_refs, memory_items,
    memory_words, queue_messages, queue_turns, run_rates, run_backlogs, run_slots TO ao_def;
GRANT INSERT, UPDATE, DELETE ON tenants TO ao_def;

-- Who lives elsewhere, for those who have to know before they are bound to a tenant.
CREATE FUNCTION ao_tenant_homes() RETURNS TABLE (tenant_id text, home text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT h.tenant, h.home FROM tenant_homes h;
END;

-- What has changed in the directory is changed in the copy, of the tenant the transaction is bound to. The directory itself is
-- out of its reach.
CREATE FUNCTION ao_copy_tenant(p_status text, p_entitlements json) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    UPDATE tenants t SET status = p_status, entitlements = p_entitlements
    FROM tenant_copies c
    WHERE c.tenant = t.tenant_id AND t.tenant_id = nullif(current_setting('app.tenant_id', true), '');
END;

-- Where the tenant that the transaction is bound to has ever lived beside the shared database.
CREATE FUNCTION ao_tenant_stays() RETURNS TABLE (home text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT s.home FROM tenant_stays s
    WHERE s.tenant = nullif(current_setting('app.tenant_id', true), '')
    ORDER BY s.since, s.home;
END;

-- What this database says of a move of the tenant that the transaction is bound to; nothing when there is none.
CREATE FUNCTION ao_move_standing() RETURNS TABLE (state text, other text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    SELECT m.state, m.other FROM tenant_moves m WHERE m.tenant = nullif(current_setting('app.tenant_id', true), '');
END;

-- Of a tenant whose tombstone is here: nobody is led to its home any more.
CREATE FUNCTION ao_forget_home() RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    DELETE FROM tenant_homes h USING tenant_tombstones x
    WHERE x.tenant_id = h.tenant AND h.tenant = nullif(current_setting('app.tenant_id', true), '');
    DELETE FROM tenant_copies c USING tenant_tombstones x
    WHERE x.tenant_id = c.tenant AND c.tenant = nullif(current_setting('app.tenant_id', true), '');
END;

-- For readers that may be late: refuses a transaction that is bound to a tenant who has left.
CREATE FUNCTION ao_still_here() RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_other text := (
        SELECT m.other FROM tenant_moves m
        WHERE m.state = 'left'
          AND m.tenant = ANY (string_to_array(current_setting('app.tenant_id', true), ' '))
        LIMIT 1
    );
BEGIN
    IF v_other IS NOT NULL THEN
        RAISE EXCEPTION 'the tenant has moved' USING ERRCODE = 'AO001', DETAIL = v_other;
    END IF;
END
$$;

-- Before each write of a row of the tenant that is the first argument. The second makes the row's key of it.
--
-- The lock is shared by writers and taken alone by the move when it ends: it waits for the writers there are, and who comes
-- after waits for it, and then sees what has become of the tenant. Whoever is not bound to the tenant serves all of them (a
-- lease, a sweep): that one neither waits nor fails, but passes the row over. Retention passes it over during the move.
CREATE FUNCTION ao_move_guard() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
DECLARE
    v_tenant text := tg_argv[0];
    v_bound  boolean := v_tenant = ANY (string_to_array(coalesce(current_setting('app.tenant_id', true), ''), ' '));
    v_state  text;
    v_other  text;
    v_key    jsonb;
BEGIN
    IF v_bound THEN
        PERFORM pg_advisory_xact_lock_shared(174487340, hashtext(v_tenant));
    ELSIF NOT pg_try_advisory_xact_lock_shared(174487340, hashtext(v_tenant)) THEN
        RETURN NULL;
    END IF;
    -- A statement of its own: it sees what was committed while the lock was waited for.
    SELECT m.state, m.other INTO v_state, v_other FROM tenant_moves m WHERE m.tenant = v_tenant;
    IF v_state = 'left' THEN
        IF v_bound THEN
            RAISE EXCEPTION 'the tenant has moved' USING ERRCODE = 'AO001', DETAIL = v_other;
        END IF;
        IF tg_op = 'DELETE' THEN
            RETURN old;
        END IF;
        RETURN NULL;
    END IF;
    IF v_state = 'leaving' THEN
        IF tg_op = 'DELETE' AND NOT v_bound THEN
            RETURN NULL;
        END IF;
        IF tg_op = 'DELETE' THEN
            EXECUTE tg_argv[1] INTO v_key USING old;
        ELSE
            EXECUTE tg_argv[1] INTO v_key USING new;
        END IF;
        INSERT INTO tenant_changes (tenant, name, key) VALUES (v_tenant, tg_argv[2], v_key);
    END IF;
    IF tg_op = 'DELETE' THEN
        RETURN old;
    END IF;
    RETURN new;
END
$$;

-- Whoever lives elsewhere, or is on the way, is not removed here: most of what is theirs would be left.
CREATE FUNCTION ao_lives_here() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM tenant_homes h WHERE h.tenant = old.tenant_id)
       OR EXISTS (SELECT FROM tenant_moves m WHERE m.tenant = old.tenant_id AND m.state = 'leaving') THEN
        RAISE EXCEPTION 'the tenant lives elsewhere' USING ERRCODE = 'AO002';
    END IF;
    RETURN old;
END
$$;

DO $$
DECLARE
    signature regprocedure;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'ao_tenant_homes()', 'ao_still_here()', 'ao_move_guard()', 'ao_lives_here()',
        'ao_copy_tenant(text, json)', 'ao_tenant_stays()', 'ao_move_standing()', 'ao_forget_home()'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('ALTER FUNCTION %s OWNER TO ao_def', signature);
    END LOOP;
END
$$;
SET LOCAL ROLE ao_def;
GRANT EXECUTE ON FUNCTION ao_tenant_homes(), ao_still_here(), ao_tenant_stays() TO ao_app;
GRANT EXECUTE ON FUNCTION ao_copy_tenant(text, json), ao_move_standing(), ao_forget_home() TO ao_control;
-- Who makes a trigger must be allowed to execute its function.
GRANT EXECUTE ON FUNCTION ao_move_guard(), ao_lives_here() TO ao_owner;
RESET ROLE;
CREATE TRIGGER lives_here BEFORE DELETE ON tenants FOR EACH ROW EXECUTE FUNCTION ao_lives_here();
SET LOCAL ROLE ao_def;

-- As before; and a worker learns as well which of its runs have moved, which is the end of them here: what it would write
-- is refused.
CREATE OR REPLACE FUNCTION ao_worker_renew(p_worker text, p_duration interval) RETURNS SETOF uuid
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    INSERT INTO workers (id, lease_until) VALUES (p_worker, ao_now() + p_duration)
        ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until;
    -- A worker has a new id each boot: forget those that can't come back.
    DELETE FROM workers WHERE lease_until < ao_now() - interval '1 day';
    SELECT r.id FROM runs r
    WHERE r.status = 'running' AND r.worker_id = p_worker
      AND (
          r.cancel_requested_at IS NOT NULL
          OR r.tenant_id IN (SELECT m.tenant FROM tenant_moves m WHERE m.state = 'left')
      );
END;

-- As before, without the runs of tenants that have left or not arrived.
CREATE OR REPLACE FUNCTION ao_orphans_with_room(p_queued_for interval, p_limit integer, p_active integer)
    RETURNS TABLE (id uuid, requester json)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now),
    full_tenants AS MATERIALIZED (
        SELECT r.tenant_id
        FROM runs r
        LEFT JOIN tenants x ON x.tenant_id = r.tenant_id
        WHERE r.status = 'running'
        GROUP BY r.tenant_id, CAST(x.entitlements ->> 'max_active_runs' AS integer)
        HAVING count(*) >= coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), p_active)
    ),
    oldest AS MATERIALIZED (
        SELECT r.tenant_id, r.id, r.requester, r.status = 'queued' AS queued
        FROM runs r, t
        WHERE r.status IN ('queued', 'running')
          AND r.tenant_id NOT IN (SELECT m.tenant FROM tenant_moves m WHERE m.state <> 'leaving')
          AND CASE r.status
              WHEN 'queued' THEN r.queued_at < t.now - p_queued_for
                  AND r.tenant_id NOT IN (SELECT f.tenant_id FROM full_tenants f)
              ELSE NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = r.worker_id AND w.lease_until > t.now)
          END
        ORDER BY r.id
        LIMIT p_limit
    ),
    places AS MATERIALIZED (
        SELECT o.tenant_id, o.id, row_number() OVER (PARTITION BY o.tenant_id ORDER BY o.id) AS k
        FROM oldest o
        WHERE o.queued
    ),
    urgent AS MATERIALIZED (
        SELECT c.tenant_id, u.id, u.requester,
               row_number() OVER (PARTITION BY c.tenant_id ORDER BY u.priority DESC, u.id) AS k
        FROM t, (SELECT p.tenant_id, count(*) AS many FROM places p GROUP BY p.tenant_id) c,
             LATERAL (
                 SELECT q.id, q.requester, q.priority
                 FROM runs q
                 WHERE q.tenant_id = c.tenant_id AND q.status = 'queued' AND q.queued_at < t.now - p_queued_for
                 ORDER BY q.priority DESC, q.id
                 LIMIT c.many
             ) u
    )
    SELECT named.id, named.requester
    FROM (
        SELECT o.id AS place, o.id, o.requester FROM oldest o WHERE NOT o.queued
        UNION ALL
        SELECT p.id, u.id, u.requester FROM places p JOIN urgent u ON u.tenant_id = p.tenant_id AND u.k = p.k
    ) named
    ORDER BY named.place;
END;

-- As before, without the runs of tenants that have left or not arrived.
CREATE OR REPLACE FUNCTION ao_adrift(p_limit integer) RETURNS TABLE (id uuid, requester json, due text)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp
BEGIN ATOMIC
    WITH t AS MATERIALIZED (SELECT ao_now() AS now)
    SELECT r.id, r.requester, 'wake'
    FROM runs r, t
    WHERE r.status = 'waiting'
      AND r.tenant_id NOT IN (SELECT m.tenant FROM tenant_moves m WHERE m.state <> 'leaving')
      AND (
          r.cancel_requested_at IS NOT NULL
          OR r.deadline_at <= t.now
          OR r.waits_for = 'child' AND NOT EXISTS (
              SELECT FROM runs c
              WHERE c.tenant_id = r.tenant_id AND c.parent_id = r.id AND c.status NOT IN ('succeeded', 'failed', 'cancelled')
          )
      )
    UNION ALL
    SELECT r.id, r.requester, 'cancel'
    FROM runs r
    JOIN runs p ON p.tenant_id = r.tenant_id AND p.id = r.parent_id
    WHERE r.parent_id IS NOT NULL AND r.status IN ('queued', 'running', 'waiting', 'needs_operator')
      AND r.tenant_id NOT IN (SELECT m.tenant FROM tenant_moves m WHERE m.state <> 'leaving')
      AND r.cancel_requested_at IS NULL AND p.status IN ('succeeded', 'failed', 'cancelled')
    ORDER BY 1
    LIMIT p_limit;
END;

RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
