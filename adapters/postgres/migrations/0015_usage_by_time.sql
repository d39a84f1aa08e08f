-- outside a transaction
-- What a tenant has spent since a moment, without a look at all that it ever did.

CREATE INDEX CONCURRENTLY usage_events_by_time ON usage_events (tenant_id, at);
