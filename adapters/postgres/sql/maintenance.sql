-- Statements of Maintenance: each calls a function that crosses tenants or makes tables, see the migrations.

-- name: make_event_days
SELECT ao_make_event_days(:ahead);

-- name: forget_runs
-- Across tenants: retention is the node's.
SELECT ao_forget_runs(:days, :limit) AS removed;

-- name: retain
-- What tenants keep for less time.
SELECT * FROM ao_retain(:limit);

-- name: drop_event_days
SELECT ao_drop_event_days(:days);

-- name: thin_event_days
-- Of days that stay, what was of runs that are gone.
SELECT ao_thin_event_days(:limit) AS more;

-- name: make_request_days
SELECT ao_make_request_days(:ahead) AS made;

-- name: thin_request_days
-- Of days of which somebody holds something.
SELECT ao_thin_request_days(:days, :limit) AS removed;

-- name: drop_request_days
SELECT ao_drop_request_days(:days) AS dropped;

-- name: forget_requests
-- Of texts, replies and strays, the most that any of them was.
SELECT ao_forget_requests(:days, :limit) AS removed;
