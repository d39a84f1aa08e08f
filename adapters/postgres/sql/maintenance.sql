-- Statements of Maintenance: each calls a function that crosses tenants or makes tables, see the migrations.

-- name: make_event_days
SELECT ao_make_event_days(:ahead);

-- name: forget_runs
-- Across tenants: retention is the node's.
SELECT ao_forget_runs(:days, :limit) AS removed;

-- name: drop_event_days
SELECT ao_drop_event_days(:days);
