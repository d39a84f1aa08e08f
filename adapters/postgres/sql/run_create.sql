-- Statements of making runs. Each names tenant and namespace; lists come as JSON, and JSON inside them as text: the driver
-- would have to look up array types with set_config, which nobody may call here, and a NUL that JSON escapes may not be
-- unescaped on the way.

-- name: create
-- Several runs, or one. Admission of each tenant, then the keys, the runs, their first events and the audit. Fewer rows than
-- were asked for, and whoever asked rolls back: nothing was used up. Beside a key that was used before, nothing of its tenant
-- asks for admission.
-- Whoever makes the same key at the same moment waits for the other's commit.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
asked AS MATERIALIZED (
    SELECT a.*, uuidv7() AS id
    FROM json_to_recordset(CAST(:asks AS json)) AS a (
        place integer, tenant text, namespace text, principal text, route text, key text, fingerprint text, agent_id text,
        agent_version integer, agent_digest text, requester text, input text, context text, tool_allowlist text,
        session_id text, deadline_us bigint, data text, correlation_id text, traceparent text, parent_id uuid,
        parent_step integer, depth integer, priority smallint
    )
),
admitted AS MATERIALIZED (
    SELECT c.tenant,
           ao_admit_runs(c.tenant, CAST(:runs_per_minute AS integer), CAST(:max_queued_runs AS integer), c.many) AS stripe
    FROM (SELECT a.tenant, CAST(count(*) AS integer) AS many FROM asked a GROUP BY a.tenant ORDER BY a.tenant) c
    WHERE NOT EXISTS (
        SELECT FROM asked a, idempotency i
        WHERE a.tenant = c.tenant AND i.tenant_id = a.tenant AND i.namespace = a.namespace AND i.principal = a.principal
          AND i.route = a.route AND i.key = a.key
    )
),
taken AS (
    INSERT INTO idempotency (tenant_id, namespace, principal, route, key, fingerprint, run_id, created_at)
    SELECT a.tenant, a.namespace, a.principal, a.route, a.key, a.fingerprint, a.id, t.now
    FROM t, asked a
    JOIN admitted d ON d.tenant = a.tenant
    WHERE d.stripe IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING run_id
),
made AS (
    INSERT INTO runs (
        tenant_id, id, namespace, agent_id, agent_version, agent_digest, requester, input, context, tool_allowlist,
        session_id, created_at, queued_at, deadline_at, last_sequence, backlog_stripe, parent_id, parent_step, depth,
        priority
    )
    SELECT a.tenant, a.id, a.namespace, a.agent_id, a.agent_version, a.agent_digest, CAST(a.requester AS json),
           CAST(a.input AS json), CAST(a.context AS json), CAST(a.tool_allowlist AS json), a.session_id, t.now, t.now,
           t.now + a.deadline_us * interval '1 microsecond', 1, d.stripe, a.parent_id, a.parent_step, a.depth,
           a.priority
    FROM t, taken
    JOIN asked a ON a.id = taken.run_id
    JOIN admitted d ON d.tenant = a.tenant
    RETURNING *
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT a.tenant, a.id, 1, 'run.created', t.now, CAST(a.data AS json), a.correlation_id, a.traceparent
    FROM t, taken
    JOIN asked a ON a.id = taken.run_id
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT a.tenant, a.namespace, ao_actor(a.tenant, a.principal), a.principal, 'run.create', 'run_' || replace(CAST(a.id AS text), '-', ''),
           a.correlation_id
    FROM taken
    JOIN asked a ON a.id = taken.run_id
    -- Heads of several tenants are locked in this order.
    ORDER BY a.tenant, a.place
)
SELECT a.place, made.* FROM made JOIN asked a ON a.id = made.id;

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
    SELECT ao_admit_runs(:tenant, CAST(:runs_per_minute AS integer), CAST(:max_queued_runs AS integer), 1) AS stripe
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
        session_id, created_at, queued_at, deadline_at, last_sequence, forked_from, forked_step, backlog_stripe, priority
    )
    SELECT :tenant, taken.run_id, :namespace, source.agent_id, source.agent_version, source.agent_digest,
           CAST(:requester AS json), source.input, source.context, source.tool_allowlist, source.session_id, t.now, t.now,
           t.now + (source.deadline_at - source.created_at - source.waited), 1, source.id, CAST(:at AS integer),
           admitted.stripe, source.priority
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
    SELECT made.tenant_id, made.namespace, ao_actor(:tenant, :principal), :principal, 'run.fork', 'run_' || replace(CAST(made.id AS text), '-', ''),
           :correlation_id
    FROM made
)
SELECT * FROM made;
