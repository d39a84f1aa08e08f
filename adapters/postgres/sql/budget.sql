-- Statements of the budget ledger. A window's row holds the sums. Whoever changes holds locks the rows of all windows that
-- they are on first, in one order; so sums and holds agree, and nobody waits for somebody who waits for them.

-- name: look
-- What windows are computed from.
SELECT ao_now() AS now WHERE CAST(:tenant AS text) IS NOT NULL;

-- name: lock
-- The windows asked for, as far as they are there; those of the holds given; those of the holds whose lease has ended (due).
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
found AS (
    SELECT x.account, x.start, false AS due
    FROM json_to_recordset(CAST(:windows AS json)) AS x (account text, start timestamptz)
    UNION ALL
    SELECT hw.account, hw.window_start, false
    FROM json_array_elements_text(CAST(:holds AS json)) g (id)
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = CAST(g.id AS uuid)
    UNION ALL
    SELECT hw.account, hw.window_start, true
    FROM t
    JOIN budget_holds h ON h.tenant_id = :tenant AND h.ended IS NULL AND h.expires_at <= t.now
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = h.id
),
wanted AS MATERIALIZED (SELECT f.account, f.start, bool_or(f.due) AS due FROM found f GROUP BY f.account, f.start)
SELECT w.account, w.window_start, w.settled, w.held, wanted.due, t.now
FROM wanted
JOIN budget_windows w ON w.tenant_id = :tenant AND w.account = wanted.account AND w.window_start = wanted.start
CROSS JOIN t
ORDER BY w.account, w.window_start
FOR NO KEY UPDATE OF w;

-- name: open
INSERT INTO budget_windows (tenant_id, account, window_start, unit, settled, held)
SELECT :tenant, x.account, x.start, x.unit, 0, 0
FROM json_to_recordset(CAST(:windows AS json)) AS x (account text, start timestamptz, unit text)
ORDER BY x.account, x.start
ON CONFLICT (tenant_id, account, window_start) DO NOTHING;

-- name: lapse
-- Holds whose lease has ended count as spent: in full, or at their checkpoint. Their windows are locked.
WITH over AS (
    UPDATE budget_holds h
    SET ended = 'lapsed', tokens = 0, nanousd = 0,
        lapsed_tokens = coalesce(h.checkpoint_tokens, h.tokens), lapsed_nanousd = coalesce(h.checkpoint_nanousd, h.nanousd)
    WHERE h.tenant_id = :tenant AND h.ended IS NULL AND h.expires_at <= CAST(:now AS timestamptz)
    RETURNING h.tenant_id, h.id, h.lapsed_tokens, h.lapsed_nanousd, old.tokens, old.nanousd
),
told AS (
    INSERT INTO usage_events (tenant_id, request_id, attempt, hold_id, kind, fresh_tokens, cost_nanousd, estimated)
    SELECT over.tenant_id, 'lapsed ' || over.id, 0, over.id, 'lapse', over.lapsed_tokens, over.lapsed_nanousd, true FROM over
),
sums AS (
    SELECT hw.account, hw.window_start, sum(over.tokens) AS tokens, sum(over.nanousd) AS nanousd,
           sum(over.lapsed_tokens) AS lapsed_tokens, sum(over.lapsed_nanousd) AS lapsed_nanousd
    FROM over
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = over.id
    GROUP BY hw.account, hw.window_start
)
UPDATE budget_windows w
SET held = w.held - CASE w.unit WHEN 'tokens' THEN sums.tokens ELSE sums.nanousd END,
    settled = w.settled + CASE w.unit WHEN 'tokens' THEN sums.lapsed_tokens ELSE sums.lapsed_nanousd END
FROM sums
WHERE w.tenant_id = :tenant AND w.account = sums.account AND w.window_start = sums.window_start;

-- name: hold
-- The windows are locked, and have room.
WITH made AS (
    INSERT INTO budget_holds (tenant_id, tokens, nanousd, expires_at)
    VALUES (:tenant, CAST(:tokens AS bigint), CAST(:nanousd AS bigint), ao_now() + CAST(:lease AS interval))
    RETURNING id, expires_at
),
asked AS MATERIALIZED (
    SELECT x.account, x.start FROM json_to_recordset(CAST(:windows AS json)) AS x (account text, start timestamptz)
),
linked AS (
    INSERT INTO budget_hold_windows (tenant_id, hold_id, account, window_start)
    SELECT :tenant, made.id, asked.account, asked.start FROM made, asked
),
held AS (
    UPDATE budget_windows w
    SET held = w.held + CASE w.unit WHEN 'tokens' THEN CAST(:tokens AS bigint) ELSE CAST(:nanousd AS bigint) END
    FROM asked
    WHERE w.tenant_id = :tenant AND w.account = asked.account AND w.window_start = asked.start
)
SELECT made.id, made.expires_at FROM made;

-- name: holds
SELECT h.id, h.tokens, h.nanousd, h.expires_at, h.ended, hw.account, hw.window_start
FROM json_array_elements_text(CAST(:holds AS json)) g (id)
JOIN budget_holds h ON h.tenant_id = :tenant AND h.id = CAST(g.id AS uuid)
JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = h.id;

-- name: extend
-- The windows are locked, and have room.
WITH grown AS (
    UPDATE budget_holds h
    SET tokens = h.tokens + CAST(:tokens AS bigint), nanousd = h.nanousd + CAST(:nanousd AS bigint),
        expires_at = greatest(h.expires_at, ao_now() + CAST(:lease AS interval))
    WHERE h.tenant_id = :tenant AND h.id = :hold AND h.ended IS NULL
    RETURNING h.id, h.expires_at
),
held AS (
    UPDATE budget_windows w
    SET held = w.held + CASE w.unit WHEN 'tokens' THEN CAST(:tokens AS bigint) ELSE CAST(:nanousd AS bigint) END
    FROM grown
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = grown.id
    WHERE w.tenant_id = :tenant AND w.account = hw.account AND w.window_start = hw.window_start
)
SELECT grown.expires_at FROM grown;

-- name: renew
UPDATE budget_holds h
SET expires_at = greatest(h.expires_at, t.now + CAST(:lease AS interval))
FROM (SELECT ao_now() AS now) t, json_array_elements_text(CAST(:holds AS json)) g (id)
WHERE h.tenant_id = :tenant AND h.id = CAST(g.id AS uuid) AND h.ended IS NULL AND h.expires_at > t.now
RETURNING h.id;

-- name: checkpoint
UPDATE budget_holds h
SET checkpoint_tokens = CASE WHEN h.ended IS NULL THEN CAST(:tokens AS bigint) ELSE h.checkpoint_tokens END,
    checkpoint_nanousd = CASE WHEN h.ended IS NULL THEN CAST(:nanousd AS bigint) ELSE h.checkpoint_nanousd END
WHERE h.tenant_id = :tenant AND h.id = :hold
RETURNING h.id;

-- name: book
-- The windows of the holds are locked. What is there already is not added, and so not counted, again. Says which holds there
-- are.
WITH given AS MATERIALIZED (
    SELECT x.* FROM unnest(CAST(string_to_array(CAST(:events AS text), :between) AS ao_given_usage[])) AS x
),
added AS (
    INSERT INTO usage_events (
        tenant_id, request_id, attempt, hold_id, kind, correlation_id, principal, agent, session, model, backend,
        fresh_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_nanousd, price, estimated
    )
    SELECT h.tenant_id, g.request, g.attempt, h.id, g.kind, g.correlation_id, g.principal, g.agent, g.session, g.model,
           g.backend, g.fresh_tokens, g.cache_read_tokens, g.cache_write_tokens, g.output_tokens, g.reasoning_tokens,
           g.cost_nanousd, g.price, g.estimated
    FROM given g
    JOIN budget_holds h ON h.tenant_id = :tenant AND h.id = g.hold
    ORDER BY g.request, g.attempt
    ON CONFLICT (tenant_id, request_id, attempt) DO NOTHING
    RETURNING hold_id, cost_nanousd,
              fresh_tokens + cache_read_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS tokens
),
spent AS MATERIALIZED (
    SELECT b.hold, b."end", CAST(b.keep ->> 'tokens' AS bigint) AS keep_tokens,
           CAST(b.keep ->> 'nanousd' AS bigint) AS keep_nanousd, used.tokens, used.nanousd
    FROM json_to_recordset(CAST(:bookings AS json)) AS b (hold uuid, "end" boolean, keep json)
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(added.tokens), 0) AS tokens, coalesce(sum(added.cost_nanousd), 0) AS nanousd
        FROM added WHERE added.hold_id = b.hold
    ) used
),
moved AS (
    UPDATE budget_holds h
    SET tokens = least(greatest(0, h.tokens - spent.tokens), spent.keep_tokens),
        nanousd = least(greatest(0, h.nanousd - spent.nanousd), spent.keep_nanousd),
        -- Without a checkpoint it stays so: of NULL and 0, 0 is the greatest.
        checkpoint_tokens = CASE WHEN h.checkpoint_tokens > spent.tokens THEN h.checkpoint_tokens - spent.tokens
                                 WHEN h.checkpoint_tokens IS NOT NULL THEN 0 END,
        checkpoint_nanousd = CASE WHEN h.checkpoint_nanousd > spent.nanousd THEN h.checkpoint_nanousd - spent.nanousd
                                  WHEN h.checkpoint_nanousd IS NOT NULL THEN 0 END,
        -- Whoever ends a hold knows of all that was used on it: the rest of what the end of its lease counted was not.
        lapsed_tokens = CASE WHEN spent."end" THEN 0 ELSE greatest(0, h.lapsed_tokens - spent.tokens) END,
        lapsed_nanousd = CASE WHEN spent."end" THEN 0 ELSE greatest(0, h.lapsed_nanousd - spent.nanousd) END,
        ended = CASE WHEN h.ended IS NULL AND spent."end" THEN 'settled' ELSE h.ended END
    FROM spent
    WHERE h.tenant_id = :tenant AND h.id = spent.hold
    RETURNING h.tenant_id, h.id, old.tokens - new.tokens AS tokens, old.nanousd - new.nanousd AS nanousd,
              old.lapsed_tokens - new.lapsed_tokens AS again_tokens, old.lapsed_nanousd - new.lapsed_nanousd AS again_nanousd,
              spent.tokens AS spent_tokens, spent.nanousd AS spent_nanousd
),
adjusted AS (
    INSERT INTO usage_events (tenant_id, request_id, attempt, hold_id, kind, fresh_tokens, cost_nanousd, estimated)
    SELECT m.tenant_id, 'adjusted ' || uuidv7(), 0, m.id, 'adjustment', -m.again_tokens, -m.again_nanousd, true
    FROM moved m
    WHERE m.again_tokens > 0 OR m.again_nanousd > 0
),
sums AS (
    SELECT hw.account, hw.window_start, sum(m.tokens) AS tokens, sum(m.nanousd) AS nanousd,
           sum(m.spent_tokens - m.again_tokens) AS spent_tokens, sum(m.spent_nanousd - m.again_nanousd) AS spent_nanousd
    FROM moved m
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = m.id
    GROUP BY hw.account, hw.window_start
),
summed AS (
    UPDATE budget_windows w
    SET held = w.held - CASE w.unit WHEN 'tokens' THEN sums.tokens ELSE sums.nanousd END,
        settled = w.settled + CASE w.unit WHEN 'tokens' THEN sums.spent_tokens ELSE sums.spent_nanousd END
    FROM sums
    WHERE w.tenant_id = :tenant AND w.account = sums.account AND w.window_start = sums.window_start
)
SELECT m.id FROM moved m;

-- name: standing
-- Reads only: holds whose lease has ended are counted as they will be.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
due AS MATERIALIZED (
    SELECT hw.account, hw.window_start, sum(h.tokens) AS tokens, sum(h.nanousd) AS nanousd,
           sum(coalesce(h.checkpoint_tokens, h.tokens)) AS lapsed_tokens,
           sum(coalesce(h.checkpoint_nanousd, h.nanousd)) AS lapsed_nanousd
    FROM t
    JOIN budget_holds h ON h.tenant_id = :tenant AND h.ended IS NULL AND h.expires_at <= t.now
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = h.id
    GROUP BY hw.account, hw.window_start
)
SELECT w.account, w.window_start, t.now,
       CAST(w.settled + CASE w.unit WHEN 'tokens' THEN coalesce(due.lapsed_tokens, 0)
                        ELSE coalesce(due.lapsed_nanousd, 0) END AS bigint) AS settled,
       CAST(w.held - CASE w.unit WHEN 'tokens' THEN coalesce(due.tokens, 0)
                     ELSE coalesce(due.nanousd, 0) END AS bigint) AS held
FROM t
CROSS JOIN json_to_recordset(CAST(:windows AS json)) AS x (account text, start timestamptz)
JOIN budget_windows w ON w.tenant_id = :tenant AND w.account = x.account AND w.window_start = x.start
LEFT JOIN due ON due.account = w.account AND due.window_start = w.window_start;

-- name: usage
SELECT u.* FROM usage_events u WHERE u.tenant_id = :tenant AND u.request_id = :request ORDER BY u.attempt;

-- name: spent
SELECT CAST(u.at AT TIME ZONE 'UTC' AS date) AS day, u.model, CASE WHEN CAST(:by_agent AS boolean) THEN u.agent ELSE '' END AS agent,
       count(*) FILTER (WHERE u.kind = 'call') AS calls,
       CAST(sum(u.fresh_tokens + u.cache_read_tokens + u.cache_write_tokens) AS bigint) AS prompt_tokens,
       CAST(sum(u.output_tokens + u.reasoning_tokens) AS bigint) AS completion_tokens,
       CAST(sum(u.cost_nanousd) AS bigint) AS cost_nanousd
FROM usage_events u
WHERE u.tenant_id = :tenant AND u.at >= CAST(:since AS timestamptz)
GROUP BY 1, 2, 3
ORDER BY 1, u.model COLLATE "C", 3;

-- name: deviations
-- In one pass over all that was ever booked: for people who ask, not for requests.
WITH used AS MATERIALIZED (
    SELECT u.hold_id, sum(u.cost_nanousd) AS nanousd,
           sum(u.fresh_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens + u.reasoning_tokens) AS tokens
    FROM usage_events u
    WHERE u.tenant_id = :tenant
    GROUP BY u.hold_id
),
told AS (
    SELECT w.account, w.window_start, w.settled, w.held, CAST(0 AS numeric) AS events, CAST(0 AS numeric) AS holds
    FROM budget_windows w
    WHERE w.tenant_id = :tenant
    UNION ALL
    SELECT hw.account, hw.window_start, 0, 0, CASE w.unit WHEN 'tokens' THEN used.tokens ELSE used.nanousd END, 0
    FROM used
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = used.hold_id
    JOIN budget_windows w ON w.tenant_id = :tenant AND w.account = hw.account AND w.window_start = hw.window_start
    UNION ALL
    SELECT hw.account, hw.window_start, 0, 0, 0, CASE w.unit WHEN 'tokens' THEN h.tokens ELSE h.nanousd END
    FROM budget_holds h
    JOIN budget_hold_windows hw ON hw.tenant_id = :tenant AND hw.hold_id = h.id
    JOIN budget_windows w ON w.tenant_id = :tenant AND w.account = hw.account AND w.window_start = hw.window_start
    WHERE h.tenant_id = :tenant
)
SELECT f.* FROM (
    SELECT t.account, t.window_start, CAST(sum(t.settled) AS bigint) AS settled, CAST(sum(t.held) AS bigint) AS held,
           CAST(sum(t.events) AS bigint) AS events, CAST(sum(t.holds) AS bigint) AS holds
    FROM told t
    GROUP BY t.account, t.window_start
) f
WHERE f.settled <> f.events OR f.held <> f.holds
ORDER BY f.account, f.window_start;

-- name: budgets
SELECT b.* FROM budgets b WHERE b.tenant_id = :tenant ORDER BY b.id;

-- name: set_budget
-- What is so already is not noted.
WITH changed AS (
INSERT INTO budgets AS b (tenant_id, id, scope, scope_id, unit, amount_limit, period, tz, mode)
VALUES (:tenant, :id, :scope, :scope_id, :unit, CAST(:limit AS bigint), :period, :tz, :mode)
ON CONFLICT (tenant_id, id) DO UPDATE
SET scope = excluded.scope, scope_id = excluded.scope_id, unit = excluded.unit, amount_limit = excluded.amount_limit,
    period = excluded.period, tz = excluded.tz, mode = excluded.mode
WHERE (b.scope, b.scope_id, b.unit, b.amount_limit, b.period, b.tz, b.mode) IS DISTINCT FROM
      (excluded.scope, excluded.scope_id, excluded.unit, excluded.amount_limit, excluded.period, excluded.tz, excluded.mode)
RETURNING b.id
)
INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
SELECT :tenant, :namespace, :actor, :principal, 'budget.set', changed.id, :correlation_id FROM changed;

-- name: remove_budget
WITH gone AS (
    DELETE FROM budgets b WHERE b.tenant_id = :tenant AND b.id = :id RETURNING b.id
),
noted AS (
    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)
    SELECT :tenant, :namespace, :actor, :principal, 'budget.remove', gone.id, :correlation_id FROM gone
)
SELECT gone.id FROM gone;
