-- Statements of a worker's writes to the runs it holds.

-- name: append
-- The fenced write of several runs, or of one: each run moves first, under its epoch, and everything else of it hangs on that.
-- Its row lock makes the order of commits the order of sequences. Lists come as JSON, and the JSON of a column inside them as
-- text: the driver would have to look up array types with set_config, which nobody may call here, and a NUL that JSON escapes
-- may not be unescaped on the way.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
asked AS MATERIALIZED (
    SELECT a.*
    FROM json_to_recordset(CAST(:asks AS json)) AS a (
        place integer, tenant text, namespace text, run uuid, epoch integer, status text, ends boolean, output text,
        error text, waits_for text, prompt_tokens bigint, completion_tokens bigint, cost_nanousd bigint, usage_estimated boolean,
        event_count integer, correlation_id text, traceparent text, intents json, results json, events json
    )
),
moved AS (
    UPDATE runs r
    SET last_sequence = r.last_sequence + a.event_count,
        status = coalesce(a.status, r.status),
        waits_for = coalesce(a.waits_for, r.waits_for),
        worker_id = CASE WHEN coalesce(a.status, 'running') = 'running' THEN r.worker_id END,
        queued_at = CASE WHEN a.status = 'queued' THEN t.now ELSE r.queued_at END,
        finished_at = CASE WHEN a.ends THEN t.now END,
        output = CASE WHEN a.status IS NULL THEN r.output ELSE CAST(a.output AS json) END,
        error = CASE WHEN a.status IS NULL THEN r.error ELSE CAST(a.error AS json) END,
        prompt_tokens = r.prompt_tokens + a.prompt_tokens,
        completion_tokens = r.completion_tokens + a.completion_tokens,
        cost_nanousd = r.cost_nanousd + a.cost_nanousd,
        usage_estimated = r.usage_estimated OR a.usage_estimated
    FROM t, asked a
    WHERE r.tenant_id = a.tenant AND r.namespace = a.namespace AND r.id = a.run AND r.epoch = a.epoch
      -- Not a plain comparison, for which the planner would look through all that are running.
      AND CASE r.status WHEN 'running' THEN true ELSE false END
    RETURNING r.tenant_id, r.id, r.epoch, r.last_sequence, r.last_sequence - a.event_count AS before,
              r.cancel_requested_at IS NOT NULL AS cancel_requested, r.status <> 'running' AS left, a.place, a.correlation_id,
              a.traceparent, a.intents, a.results, a.events
),
meant AS (
    INSERT INTO steps (
        tenant_id, run_id, n, kind, name, effect, status, input, input_digest, epoch, started_at, finished_at, output, error,
        usage
    )
    SELECT m.tenant_id, m.id, i.n, i.kind, i.name, i.effect, i.status, CAST(i.input AS json), i.digest, m.epoch,
           t.now, CASE WHEN i.status <> 'started' THEN t.now END, CAST(i.output AS json), CAST(i.error AS json),
           CAST(i.usage AS json)
    FROM t, moved m,
         json_to_recordset(m.intents) AS i (
             n integer, kind text, name text, effect text, status text, input text, digest text, output text, error text,
             usage text
         )
),
done AS (
    UPDATE steps s
    SET status = d.status, epoch = m.epoch, started_at = CASE d.was WHEN 'planned' THEN t.now ELSE s.started_at END,
        finished_at = CASE WHEN d.status <> 'started' THEN t.now END, output = CAST(d.output AS json),
        error = CAST(d.error AS json), usage = CAST(d.usage AS json)
    FROM t, moved m,
         json_to_recordset(m.results) AS d (n integer, was text, status text, output text, error text, usage text)
    WHERE s.tenant_id = m.tenant_id AND s.run_id = m.id AND s.n = d.n AND s.status = d.was
    RETURNING m.place
),
told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
    SELECT m.tenant_id, m.id, m.before + e.number, e.type, t.now, CAST(e.data AS json), m.correlation_id, m.traceparent
    FROM t, moved m, json_to_recordset(m.events) AS e (number integer, type text, data text)
)
SELECT m.tenant_id, m.place, m.last_sequence, m.cancel_requested,
       (SELECT count(*) FROM done WHERE done.place = m.place) AS results,
       -- Whether the tenant's queue waited for a run to end.
       m.left AND EXISTS (SELECT FROM queue_turns q WHERE q.tenant_id = m.tenant_id AND q.parked) AS made_room
FROM moved m;

-- name: release
UPDATE runs r
SET status = 'queued', worker_id = NULL, queued_at = ao_now(), recoveries = r.recoveries + CAST(:troubled AS integer)
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run AND r.epoch = :epoch AND r.status = 'running'
RETURNING r.id;
