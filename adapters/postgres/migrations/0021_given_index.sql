-- outside a transaction
-- The books are compared in one pass over all usage (`deviations`), which needs no index by hold; nothing else asked for it.

DROP INDEX CONCURRENTLY IF EXISTS usage_events_by_hold;
