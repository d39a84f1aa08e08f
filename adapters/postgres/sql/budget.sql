-- Statements of the budget ledger. A window's row holds the sums, and its lock decides who comes first.

-- name: lapse
-- Holds whose lease has ended count as spent in full.
WITH due AS (
    UPDATE budget_holds h
    SET spent = h.amount
    WHERE h.tenant_id = :tenant AND h.spent IS NULL AND h.expires_at <= (SELECT ao_now())
    RETURNING h.window_start, h.amount
),
sums AS (SELECT due.window_start, sum(due.amount) AS amount FROM due GROUP BY due.window_start)
UPDATE budget_windows w
SET held = w.held - sums.amount, settled = w.settled + sums.amount
FROM sums
WHERE w.tenant_id = :tenant AND w.window_start = sums.window_start;

-- name: reserve
-- The caller has checked that the amount alone fits. No row: there is no room.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
room AS (
    INSERT INTO budget_windows AS w (tenant_id, window_start, settled, held)
    SELECT :tenant, date_trunc('day', t.now, 'UTC'), 0, CAST(:amount AS bigint) FROM t
    ON CONFLICT (tenant_id, window_start) DO UPDATE
    SET held = w.held + excluded.held
    WHERE w.settled + w.held + excluded.held <= CAST(:limit AS bigint)
    RETURNING w.window_start
)
INSERT INTO budget_holds (tenant_id, window_start, amount, expires_at)
SELECT :tenant, room.window_start, CAST(:amount AS bigint), t.now + CAST(:lease AS interval) FROM room, t
RETURNING id, amount, expires_at;

-- name: settle
-- Once: a hold that is over stays as it is. One whose lease has ended is over, whether or not that was noted yet.
WITH t AS MATERIALIZED (SELECT ao_now() AS now),
over AS (
    UPDATE budget_holds h
    SET spent = CAST(:spent AS bigint)
    FROM t
    WHERE h.tenant_id = :tenant AND h.id = :hold AND h.spent IS NULL AND h.expires_at > t.now
    RETURNING h.window_start, h.amount
),
summed AS (
    UPDATE budget_windows w
    SET held = w.held - over.amount, settled = w.settled + CAST(:spent AS bigint)
    FROM over
    WHERE w.tenant_id = :tenant AND w.window_start = over.window_start
)
SELECT h.id FROM budget_holds h WHERE h.tenant_id = :tenant AND h.id = :hold;

-- name: balance
-- Reads only: holds whose lease has ended are counted as they will be.
WITH t AS MATERIALIZED (SELECT date_trunc('day', ao_now(), 'UTC') AS start, ao_now() AS now),
due AS (
    SELECT coalesce(sum(h.amount), 0) AS amount
    FROM budget_holds h, t
    WHERE h.tenant_id = :tenant AND h.spent IS NULL AND h.expires_at <= t.now AND h.window_start = t.start
)
SELECT t.start AS window_start,
       CAST(coalesce(w.settled, 0) + due.amount AS bigint) AS settled,
       CAST(coalesce(w.held, 0) - due.amount AS bigint) AS held
FROM t
CROSS JOIN due
LEFT JOIN budget_windows w ON w.tenant_id = :tenant AND w.window_start = t.start;
