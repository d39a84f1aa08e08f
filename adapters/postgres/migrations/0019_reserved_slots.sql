-- Workers keep a slot for tenants that have nothing under way: another's backlog takes all others.

GRANT CREATE ON SCHEMA agentos TO ao_def;
SET LOCAL ROLE ao_def;

-- As ao_queue_lease_in_turn does it, but one message of each such tenant. Nobody is parked or sent to sleep here. Of a tenant's
-- messages the 256 that come first are looked at for one that is leased, and nothing behind: leases begin at the front.
CREATE FUNCTION ao_queue_lease_idle(p_limit integer, p_duration interval, p_active integer)
    RETURNS SETOF queue_messages
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = agentos, pg_temp AS $$
DECLARE
    v_now     timestamptz := ao_now();
    v_left    integer := p_limit;
    v_reached bigint := 0;
    v_charged text[] := '{}';
    v_costs   bigint[] := '{}';
    v_turn    record;
    v_most    integer;
    v_weight  integer;
    v_first   uuid;
BEGIN
    FOR v_turn IN
        -- Whoever had nothing comes back at the time that has come, and so is among the first.
        SELECT q.tenant_id, q.vtime
        FROM queue_turns q
        WHERE q.next_at <= v_now AND q.next_at < 'infinity'
        ORDER BY q.vtime
        LIMIT 256
    LOOP
        EXIT WHEN v_left <= 0;
        CONTINUE WHEN EXISTS (SELECT FROM run_slots s WHERE s.tenant_id = v_turn.tenant_id AND s.run_id IS NOT NULL);
        CONTINUE WHEN EXISTS (
            SELECT FROM (
                SELECT m.lease, m.visible_at FROM queue_messages m
                WHERE m.tenant_id = v_turn.tenant_id
                ORDER BY m.priority DESC, m.id
                LIMIT 256
            ) f
            WHERE f.lease IS NOT NULL AND f.visible_at > v_now
        );
        SELECT CAST(x.entitlements ->> 'max_active_runs' AS integer), CAST(x.entitlements ->> 'weight' AS integer)
        INTO v_most, v_weight
        FROM tenants x WHERE x.tenant_id = v_turn.tenant_id;
        CONTINUE WHEN coalesce(v_most, p_active) <= 0;
        SELECT m.id INTO v_first FROM queue_messages m
        WHERE m.tenant_id = v_turn.tenant_id AND m.visible_at <= v_now
        ORDER BY m.priority DESC, m.id
        LIMIT 1;
        -- The first, or none: while somebody is just taking it, its tenant is not idle.
        RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT m.id FROM queue_messages m
                WHERE m.tenant_id = v_turn.tenant_id AND m.id = v_first AND m.visible_at <= v_now
                FOR UPDATE OF m SKIP LOCKED
            )
            UPDATE queue_messages m
            SET lease = uuidv7(), visible_at = v_now + p_duration, attempt = m.attempt + 1
            FROM picked
            WHERE m.tenant_id = v_turn.tenant_id AND m.id = picked.id
            RETURNING m.*;
        IF FOUND THEN
            v_charged := v_charged || v_turn.tenant_id;
            v_costs := v_costs || CAST(1000000 / coalesce(v_weight, 1) AS bigint);
            v_reached := greatest(v_reached, v_turn.vtime);
            v_left := v_left - 1;
        END IF;
    END LOOP;

    IF v_charged <> '{}' THEN
        PERFORM 1 FROM queue_turns q WHERE q.tenant_id = ANY (v_charged) ORDER BY q.tenant_id FOR NO KEY UPDATE;
        UPDATE queue_turns q SET vtime = q.vtime + u.cost, served_at = v_now
        FROM unnest(v_charged, v_costs) AS u (tenant_id, cost)
        WHERE q.tenant_id = u.tenant_id;
        PERFORM setval('queue_vtime', greatest(v_reached, v.last_value)) FROM queue_vtime v;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION ao_queue_lease_idle(integer, interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ao_queue_lease_idle(integer, interval, integer) TO ao_app;
RESET ROLE;
REVOKE CREATE ON SCHEMA agentos FROM ao_def;
