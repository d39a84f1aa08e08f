-- Statements of RunState. Each names tenant and namespace; each change is one statement, so one round trip.

-- name: create
-- Admission, then the key, the run, its first event and the audit; or no row, and then whoever asked rolls back: nothing was
-- used up. A key that was used before asks for no admission. Whoever makes the same key at the same moment waits for the
-- other's commit.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
admitted AS MATERIALIZED (
    SELECT ao_admit_run(:tenant, CAST(:runs_per_minute AS integer), CAST(:max_queued_runs AS integer)) AS stripe
    FROM t
    WHERE NOT EXISTS (
        SELECT FROM idempotency i
        WHERE i.tenant_id = :tenant AND i.namespace = :namespace AND i.principal = :principal AND i.route = :route
          AND i.key = :key
    )
),
taken AS (
    INSERT INTO idempotency (tenant_id, namespace, principal, route, key, fingerprint, run_id, created_at)
    SELECT :tenant, :namespace, :principal, :route, :key, :fingerprint, uuidv7(), t.now FROM admitted, t
    WHERE admitted.stripe IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING run_id
),
made AS (
    INSERT INTO runs (
        tenant_id, id, namespace, agent_id, agent_version, agent_digest, requester, input, context, tool_allowlist,
        session_id, created_at, queued_at, deadline_at, last_sequence, backlog_stripe
    )
    SELECT :tenant, taken.run_id, :namespace, :agent_id, :agent_version, :agent_digest, CAST(:requester AS json),
           CAST(:input AS json), CAST(:context AS json), CAST(:tool_allowlist AS json), :session_id, t.now, t.now,
           t.now + CAST(:deadline AS interval), 1, admitted.stripe
    FROM taken, admitted, t
    RETURNING *
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT made.tenant_id, made.id, 1, 'run.created', made.created_at, CAST(:data AS json), :correlation_id, :traceparent
    FROM made
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT made.tenant_id, made.namespace, :tenant, :principal, 'run.create', 'run_' || replace(CAST(made.id AS text), '-', ''),
           :correlation_id
    FROM made
)
SELECT * FROM made;

-- name: refusal
-- Why a creation was refused: how long until the rate has a token, and whether the backlog is full. Neither: it lost a race.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
quota AS MATERIALIZED (
    SELECT coalesce(CAST(x.entitlements ->> 'runs_per_minute' AS integer), CAST(:runs_per_minute AS integer)) AS per_minute,
           coalesce(CAST(x.entitlements ->> 'max_queued_runs' AS integer), CAST(:max_queued_runs AS integer)) AS queued
    FROM t
    LEFT JOIN tenants x ON x.tenant_id = :tenant
),
spill AS MATERIALIZED (
    SELECT coalesce(sum(greatest(0, b.queued - coalesce(s.share, 0))), 0) AS queued
    FROM quota, LATERAL (SELECT z.stripe, z.queued FROM run_backlogs z WHERE z.tenant_id = :tenant) b
    LEFT JOIN LATERAL ao_stripes(quota.queued, 100) s ON s.stripe = b.stripe
)
SELECT quota.per_minute, quota.queued,
       (SELECT min(greatest(b.used_until, t.now) + 60000000 / s.share * interval '1 microsecond' - interval '1 minute' - t.now)
        FROM t, ao_stripes(quota.per_minute, 60) s
        LEFT JOIN run_rates b ON b.tenant_id = :tenant AND b.stripe = s.stripe) AS wait,
       NOT EXISTS (
           SELECT FROM ao_stripes(quota.queued, 100) s
           LEFT JOIN run_backlogs b ON b.tenant_id = :tenant AND b.stripe = s.stripe
           WHERE coalesce(b.queued, 0) < s.share - spill.queued
       ) AS full
FROM quota, spill;

-- name: known
-- The run that a key made, with the fingerprint it was made with.
SELECT i.fingerprint, r.*
FROM idempotency i
JOIN runs r ON r.tenant_id = i.tenant_id AND r.id = i.run_id
WHERE i.tenant_id = :tenant AND i.namespace = :namespace AND i.principal = :principal AND i.route = :route AND i.key = :key
  AND r.tenant_id = :tenant;

-- name: remember
-- A key that changed a run which exists already. Nothing when the key is taken.
INSERT INTO idempotency (tenant_id, namespace, principal, route, key, fingerprint, run_id, created_at)
VALUES (:tenant, :namespace, :principal, :route, :key, :fingerprint, :run, ao_now())
ON CONFLICT DO NOTHING;

-- name: load
SELECT r.* FROM runs r WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run;

-- name: standing
-- Why a claim or a fenced write found nothing to do.
SELECT r.status, r.epoch,
       EXISTS (SELECT FROM workers w WHERE w.id = r.worker_id AND w.lease_until > ao_now()) AS held,
       EXISTS (SELECT FROM workers w WHERE w.id = :worker AND w.lease_until > ao_now()) AS live
FROM runs r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run;

-- name: claim
-- A place first, the lowest free one that nobody is just taking, so that neither does this wait. The k-th free place is to be
-- had while k more runs are within the limit, which also holds where the limit was lowered below what is running. A run that is
-- taken over has its place already.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
places AS MATERIALIZED (
    SELECT s.n, s.run_id IS NULL AS free, count(*) FILTER (WHERE s.run_id IS NULL) OVER (ORDER BY s.n) AS k
    FROM run_slots s
    WHERE s.tenant_id = :tenant
),
room AS MATERIALIZED (
    SELECT coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), CAST(:max_active_runs AS integer))
           - (SELECT count(*) FROM places WHERE NOT places.free) AS left
    FROM t
    LEFT JOIN tenants x ON x.tenant_id = :tenant
),
place AS MATERIALIZED (
    SELECT s.n
    FROM places p, room, run_slots s
    WHERE p.free AND p.k <= room.left AND s.tenant_id = :tenant AND s.n = p.n AND s.run_id IS NULL
    ORDER BY p.n
    LIMIT 1
    FOR UPDATE OF s SKIP LOCKED
),
won AS (
    UPDATE runs r
    SET status = 'running',
        worker_id = :worker,
        epoch = r.epoch + 1,
        recoveries = r.recoveries + CASE r.status WHEN 'running' THEN 1 ELSE 0 END,
        started_at = coalesce(r.started_at, t.now),
        last_sequence = r.last_sequence + CASE WHEN r.started_at IS NULL THEN 1 ELSE 0 END,
        slot = CASE r.status WHEN 'running' THEN r.slot ELSE (SELECT place.n FROM place) END
    FROM t
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
      AND (
          r.status = 'queued' AND EXISTS (SELECT FROM place)
          OR r.status = 'running'
          AND NOT EXISTS (SELECT FROM workers w WHERE w.id = r.worker_id AND w.lease_until > t.now)
      )
      AND EXISTS (SELECT FROM workers w WHERE w.id = :worker AND w.lease_until > t.now)
    RETURNING old.started_at IS NULL AS first_time, old.status = 'queued' AS placed, new.*
),
held AS (
    UPDATE run_slots s SET run_id = won.id
    FROM won
    WHERE s.tenant_id = :tenant AND s.n = won.slot AND won.placed
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT won.tenant_id, won.id, won.last_sequence, 'run.started', won.started_at, '{}', :correlation_id, :traceparent
    FROM won
    WHERE won.first_time
)
SELECT * FROM won;

-- name: provide
-- More places for a tenant that uses all it has had so far: as many again, up to its limit.
INSERT INTO run_slots (tenant_id, n)
SELECT :tenant, n
FROM (SELECT coalesce(max(s.n), 0) AS made FROM run_slots s WHERE s.tenant_id = :tenant) so_far,
     (
         SELECT coalesce(CAST(x.entitlements ->> 'max_active_runs' AS integer), CAST(:max_active_runs AS integer)) AS most
         FROM (SELECT) nobody
         LEFT JOIN tenants x ON x.tenant_id = :tenant
     ) quota,
     generate_series(made + 1, least(most, made + greatest(8, made))) AS n
ON CONFLICT DO NOTHING;

-- name: append
-- The fenced write: the run moves first, under its epoch, and everything else hangs on that. Its row lock makes the order
-- of commits the order of sequences. Lists come as JSON, and JSON inside them as text: the driver would have to look up array
-- types with set_config, which nobody may call here, and a NUL that JSON escapes may not be unescaped on the way.
WITH moved AS (
    UPDATE runs r
    SET last_sequence = r.last_sequence + CAST(:event_count AS integer),
        status = coalesce(CAST(:status AS text), r.status),
        worker_id = CASE WHEN coalesce(CAST(:status AS text), 'running') = 'running' THEN r.worker_id END,
        queued_at = CASE WHEN CAST(:status AS text) = 'queued' THEN ao_now() ELSE r.queued_at END,
        finished_at = CASE WHEN CAST(:ends AS boolean) THEN ao_now() END,
        output = CASE WHEN CAST(:status AS text) IS NULL THEN r.output ELSE CAST(:output AS json) END,
        error = CASE WHEN CAST(:status AS text) IS NULL THEN r.error ELSE CAST(:error AS json) END,
        prompt_tokens = r.prompt_tokens + CAST(:prompt_tokens AS bigint),
        completion_tokens = r.completion_tokens + CAST(:completion_tokens AS bigint),
        cost_nanousd = r.cost_nanousd + CAST(:cost_nanousd AS bigint),
        usage_estimated = r.usage_estimated OR CAST(:usage_estimated AS boolean)
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run AND r.epoch = :epoch AND r.status = 'running'
    RETURNING r.tenant_id, r.id, r.last_sequence, r.cancel_requested_at IS NOT NULL AS cancel_requested, ao_now() AS now
),
meant AS (
    INSERT INTO steps (
        tenant_id, run_id, n, kind, name, effect, status, input, input_digest, epoch, started_at, finished_at, output, error,
        usage
    )
    SELECT moved.tenant_id, moved.id, i.n, i.kind, i.name, i.effect, i.status, CAST(i.input AS json), i.digest, :epoch,
           moved.now, CASE WHEN i.status <> 'started' THEN moved.now END, CAST(i.output AS json), CAST(i.error AS json),
           CAST(i.usage AS json)
    FROM moved,
         json_to_recordset(CAST(:intents AS json)) AS i (
             n integer, kind text, name text, effect text, status text, input text, digest text, output text, error text,
             usage text
         )
),
done AS (
    UPDATE steps s
    SET status = d.status, epoch = :epoch, started_at = CASE d.was WHEN 'planned' THEN moved.now ELSE s.started_at END,
        finished_at = CASE WHEN d.status <> 'started' THEN moved.now END, output = CAST(d.output AS json),
        error = CAST(d.error AS json), usage = CAST(d.usage AS json)
    FROM moved,
         json_to_recordset(CAST(:results AS json)) AS d (
             n integer, was text, status text, output text, error text, usage text
         )
    WHERE s.tenant_id = :tenant AND s.run_id = moved.id AND s.n = d.n AND s.status = d.was
    RETURNING s.n
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT moved.tenant_id, moved.id, moved.last_sequence - CAST(:event_count AS integer) + e.place, e.type, moved.now,
           CAST(e.data AS json), :correlation_id, :traceparent
    FROM moved,
         json_to_recordset(CAST(:events AS json)) AS e (place integer, type text, data text)
)
SELECT moved.last_sequence, moved.cancel_requested, (SELECT count(*) FROM done) AS results,
       -- Whether the tenant's queue waited for a run to end.
       coalesce(CAST(:status AS text), 'running') <> 'running'
       AND EXISTS (SELECT FROM queue_turns q WHERE q.tenant_id = :tenant AND q.parked) AS made_room
FROM moved;

-- name: release
UPDATE runs r
SET status = 'queued', worker_id = NULL, queued_at = ao_now(), recoveries = r.recoveries + CAST(:troubled AS integer)
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run AND r.epoch = :epoch AND r.status = 'running'
RETURNING r.id;

-- name: cancel
-- A running run is asked to end, also when its worker's lease has lapsed: whoever recovers it knows what may still be at
-- work. Any other open run ends here.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
asked AS (
    UPDATE runs r
    SET cancel_requested_at = coalesce(r.cancel_requested_at, t.now),
        status = CASE r.status WHEN 'running' THEN 'running' ELSE 'cancelled' END,
        finished_at = CASE r.status WHEN 'running' THEN r.finished_at ELSE t.now END,
        last_sequence = r.last_sequence + CASE r.status WHEN 'running' THEN 0 ELSE 1 END
    FROM t
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
      AND (
          r.status IN ('queued', 'waiting', 'needs_operator')
          OR r.status = 'running' AND r.cancel_requested_at IS NULL
      )
    RETURNING r.*
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT asked.tenant_id, asked.id, asked.last_sequence, 'run.cancelled', asked.finished_at, CAST(:data AS json),
           :correlation_id, :traceparent
    FROM asked
    WHERE asked.status = 'cancelled'
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT asked.tenant_id, asked.namespace, :tenant, :principal, 'run.cancel',
           'run_' || replace(CAST(asked.id AS text), '-', ''), :correlation_id
    FROM asked
)
SELECT * FROM asked;

-- name: forkable
-- Whether the run is there with a result for each step up to `at`.
SELECT r.id
FROM runs r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
  AND CAST(:at AS integer) = (
      SELECT count(*)
      FROM steps s
      WHERE s.tenant_id = :tenant AND s.run_id = r.id AND s.n BETWEEN 1 AND CAST(:at AS integer)
        AND s.status IN ('completed', 'failed')
  );

-- name: fork
-- As `create`, admission included, of what another run was created with and of the beginning of its journal. Settled steps
-- never change, so reading them needs no lock. Nothing at all is made when the key is taken, or a step up to `at` has no
-- result.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
source AS MATERIALIZED (
    SELECT r.*
    FROM runs r
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
      AND CAST(:at AS integer) = (
          SELECT count(*)
          FROM steps s
          WHERE s.tenant_id = :tenant AND s.run_id = r.id AND s.n BETWEEN 1 AND CAST(:at AS integer)
            AND s.status IN ('completed', 'failed')
      )
),
admitted AS MATERIALIZED (
    SELECT ao_admit_run(:tenant, CAST(:runs_per_minute AS integer), CAST(:max_queued_runs AS integer)) AS stripe
    FROM source
    WHERE NOT EXISTS (
        SELECT FROM idempotency i
        WHERE i.tenant_id = :tenant AND i.namespace = :namespace AND i.principal = :principal AND i.route = :route
          AND i.key = :key
    )
),
taken AS (
    INSERT INTO idempotency (tenant_id, namespace, principal, route, key, fingerprint, run_id, created_at)
    SELECT :tenant, :namespace, :principal, :route, :key, :fingerprint, uuidv7(), t.now FROM admitted, t
    WHERE admitted.stripe IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING run_id
),
made AS (
    INSERT INTO runs (
        tenant_id, id, namespace, agent_id, agent_version, agent_digest, requester, input, context, tool_allowlist,
        session_id, created_at, queued_at, deadline_at, last_sequence, forked_from, forked_step, backlog_stripe
    )
    SELECT :tenant, taken.run_id, :namespace, source.agent_id, source.agent_version, source.agent_digest,
           CAST(:requester AS json), source.input, source.context, source.tool_allowlist, source.session_id, t.now, t.now,
           t.now + (source.deadline_at - source.created_at - source.waited), 1, source.id, CAST(:at AS integer),
           admitted.stripe
    FROM taken, admitted, source, t
    RETURNING *
),
copied AS (
    INSERT INTO steps (
        tenant_id, run_id, n, kind, name, effect, status, input, input_digest, epoch, started_at, finished_at, output, error,
        usage
    )
    SELECT made.tenant_id, made.id, s.n, s.kind, s.name, s.effect, s.status, s.input, s.input_digest, 0, s.started_at,
           s.finished_at, s.output, s.error, CAST(:no_usage AS json)
    FROM made, steps s
    WHERE s.tenant_id = :tenant AND s.run_id = :run AND s.n BETWEEN 1 AND CAST(:at AS integer)
),
needed AS (
    -- The large bodies of what was copied, and perhaps of more.
    INSERT INTO blob_refs (tenant_id, run_id, sha256)
    SELECT made.tenant_id, made.id, b.sha256
    FROM made, blob_refs b
    WHERE b.tenant_id = :tenant AND b.run_id = :run
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT made.tenant_id, made.id, 1, 'run.created', made.created_at,
           json_build_object('agent_id', made.agent_id, 'forked_from', CAST(:lineage AS json)), :correlation_id, :traceparent
    FROM made
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT made.tenant_id, made.namespace, :tenant, :principal, 'run.fork', 'run_' || replace(CAST(made.id AS text), '-', ''),
           :correlation_id
    FROM made
)
SELECT * FROM made;

-- name: hold
-- The run under its lock: what the next statement of this transaction sees is the latest.
SELECT r.* FROM runs r WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run FOR UPDATE;

-- name: resolve
-- Run under `hold`. The step moves first, and everything else hangs on that.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
decided AS (
    UPDATE steps s
    SET status = :status, output = CAST(:output AS json), error = CAST(:error AS json),
        finished_at = CASE WHEN CAST(:status AS text) <> 'planned' THEN t.now END
    FROM runs r, t
    WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run AND r.status = 'needs_operator'
      AND s.tenant_id = :tenant AND s.run_id = r.id AND s.n = :n AND s.status = 'unknown'
    RETURNING s.run_id, t.now, t.now - old.finished_at AS waited, NOT EXISTS (
        SELECT FROM steps o
        WHERE o.tenant_id = :tenant AND o.run_id = s.run_id AND o.n <> s.n AND o.status = 'unknown'
    ) AS last
),
moved AS (
    UPDATE runs r
    SET last_sequence = r.last_sequence + 1,
        status = CASE WHEN decided.last THEN 'queued' ELSE r.status END,
        queued_at = CASE WHEN decided.last THEN decided.now ELSE r.queued_at END,
        deadline_at = CASE WHEN decided.last THEN r.deadline_at + decided.waited ELSE r.deadline_at END,
        waited = CASE WHEN decided.last THEN r.waited + decided.waited ELSE r.waited END
    FROM decided
    WHERE r.tenant_id = :tenant AND r.id = decided.run_id
    RETURNING r.*
),
taken AS (
    INSERT INTO idempotency (tenant_id, namespace, principal, route, key, fingerprint, run_id, created_at)
    SELECT moved.tenant_id, moved.namespace, :principal, :route, :key, :fingerprint, moved.id, decided.now FROM moved, decided
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT moved.tenant_id, moved.id, moved.last_sequence, 'step.resolved', decided.now, CAST(:data AS json),
           :correlation_id, :traceparent
    FROM moved, decided
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT moved.tenant_id, moved.namespace, :tenant, :principal, :action,
           'run_' || replace(CAST(moved.id AS text), '-', '') || ':' || CAST(:n AS integer), :correlation_id
    FROM moved
)
SELECT * FROM moved;

-- name: steps
-- One row per step, and one without a step for a run that has none left: no row means no run.
SELECT s.*
FROM runs r
LEFT JOIN LATERAL (
    SELECT * FROM steps
    WHERE steps.tenant_id = :tenant AND steps.run_id = r.id AND steps.n > :after
    ORDER BY steps.n
    LIMIT :limit
) s ON true
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
ORDER BY s.n;

-- name: list
SELECT r.*
FROM runs r
WHERE r.tenant_id = :tenant AND r.namespace = :namespace
  AND r.id < coalesce(CAST(:before AS uuid), CAST('ffffffff-ffff-ffff-ffff-ffffffffffff' AS uuid))
  AND (CAST(:status AS text) IS NULL OR r.status = :status)
  AND (CAST(:agent_id AS text) IS NULL OR r.agent_id = :agent_id)
ORDER BY r.id DESC
LIMIT :limit;

-- name: renew
-- Across tenants: a worker holds runs of many.
SELECT id FROM ao_worker_renew(:worker, CAST(:duration AS interval)) AS id;

-- name: retire
SELECT ao_worker_retire(:worker);

-- name: orphans
-- Across tenants: the sweeper serves them all.
SELECT id, requester FROM ao_orphans_with_room(CAST(:queued_for AS interval), :limit, :max_active_runs);
