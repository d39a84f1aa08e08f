-- Priority within a tenant, and what a waiting run waits for.
--
-- Both columns have a constant default, so that no row is rewritten, and their checks are of rows that are written from now
-- on, so that none is read: the tables are locked for a moment only. A version before this one writes neither; what it
-- writes means the default, also while it still runs.

ALTER TABLE runs
    ADD COLUMN priority smallint NOT NULL DEFAULT 5,
    -- Means something while the run is waiting.
    ADD COLUMN waits_for text NOT NULL DEFAULT 'child',
    ADD CONSTRAINT runs_priority CHECK (priority BETWEEN 0 AND 9) NOT VALID,
    ADD CONSTRAINT runs_waits_for CHECK (waits_for IN ('child', 'approval', 'timer', 'peer')) NOT VALID;

ALTER TABLE queue_messages
    ADD COLUMN priority smallint NOT NULL DEFAULT 5,
    ADD CONSTRAINT queue_messages_priority CHECK (priority BETWEEN 0 AND 9) NOT VALID;
