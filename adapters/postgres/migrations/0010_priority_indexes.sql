-- outside a transaction
-- The first of a tenant's in the order in which they are taken, however many wait. Neither column ever changes: taking and
-- extending stay HOT updates. A change of a run's status is none in any case.

CREATE INDEX CONCURRENTLY queue_messages_by_priority ON queue_messages (tenant_id, priority DESC, id);

CREATE INDEX CONCURRENTLY runs_by_priority ON runs (tenant_id, priority DESC, id) WHERE status = 'queued';
