-- outside a transaction
-- By which replies are forgotten.

CREATE INDEX CONCURRENTLY model_replies_by_end ON model_replies (forget_at);
