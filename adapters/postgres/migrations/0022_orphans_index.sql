-- outside a transaction
-- What is queued, the longest first.

CREATE INDEX CONCURRENTLY runs_queued ON runs (queued_at, id) WHERE status = 'queued';
