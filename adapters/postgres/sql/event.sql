-- Statements of Event. Events are written with the change they tell of, see run_state.sql.

-- name: read
-- One row per event, and one without for a run that has none after the cursor: no row means no run. The events are asked
-- for by the run that was named, not by the one that was found: that is how the planner knows their partition.
SELECT r.last_sequence, e.*
FROM runs r
LEFT JOIN LATERAL (
    SELECT * FROM run_events
    WHERE run_events.tenant_id = :tenant AND run_events.run_id = :run AND run_events.sequence > :after
    ORDER BY run_events.sequence
    LIMIT :limit
) e ON true
WHERE r.tenant_id = :tenant AND r.namespace = :namespace AND r.id = :run
ORDER BY e.sequence;

-- name: stream_epoch
SELECT stream_epoch FROM node;
