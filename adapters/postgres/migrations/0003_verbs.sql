-- Forks, and decisions of operators.

ALTER TABLE runs
    -- Where a fork comes from. Not a foreign key: that run may be gone before its forks are.
    ADD COLUMN forked_from uuid,
    ADD COLUMN forked_step integer CHECK (forked_step >= 0),
    -- By so much the deadline was moved, because the run waited for an operator.
    ADD COLUMN waited interval NOT NULL DEFAULT '0',
    ADD CONSTRAINT runs_origin CHECK ((forked_from IS NULL) = (forked_step IS NULL));

-- Wider than before, so that every row there is passes it, and none needs to be read under the lock.
ALTER TABLE steps
    DROP CONSTRAINT steps_status_check,
    ADD CONSTRAINT steps_status_check
        CHECK (status IN ('started', 'completed', 'failed', 'unknown', 'planned')) NOT VALID;
