"""A witness inside the database: triggers of ours, which see every write of runs and steps whoever makes it.

The engine's own columns would say what the engine believes. These rows say what was written, and under which epoch the run
stood at that moment; and from when on the journal of replies had the one of a step.
"""

from typing import Any, Final

import asyncpg

_WITNESS: Final = """
CREATE SCHEMA IF NOT EXISTS faults;
CREATE TABLE faults.results (run_id uuid, n integer, epoch integer, at timestamptz);
CREATE TABLE faults.older (run_id uuid, n integer, status text, epoch integer, current integer, xid xid8, at timestamptz);
CREATE TABLE faults.ended (run_id uuid, xid xid8);
CREATE TABLE faults.claims (run_id uuid, epoch integer, worker_id text, at timestamptz);

CREATE FUNCTION faults.step_written() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = faults AS $$
DECLARE
    current integer;
BEGIN
    SELECT r.epoch INTO current FROM agentos.runs r WHERE r.tenant_id = NEW.tenant_id AND r.id = NEW.run_id;
    IF NEW.epoch <> current THEN
        INSERT INTO older
        VALUES (NEW.run_id, NEW.n, NEW.status, NEW.epoch, current, pg_current_xact_id(), clock_timestamp());
    END IF;
    IF TG_OP = 'INSERT' AND NEW.status <> 'started' OR TG_OP = 'UPDATE' AND NEW.status IS DISTINCT FROM OLD.status THEN
        INSERT INTO results VALUES (NEW.run_id, NEW.n, NEW.epoch, clock_timestamp());
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER witnessed AFTER INSERT OR UPDATE ON agentos.steps FOR EACH ROW EXECUTE FUNCTION faults.step_written();

CREATE FUNCTION faults.run_claimed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = faults AS $$
BEGIN
    INSERT INTO claims VALUES (NEW.id, NEW.epoch, NEW.worker_id, clock_timestamp());
    RETURN NULL;
END
$$;
CREATE TRIGGER witnessed AFTER UPDATE ON agentos.runs FOR EACH ROW WHEN (NEW.epoch <> OLD.epoch)
    EXECUTE FUNCTION faults.run_claimed();

CREATE TABLE faults.replies (step_key text, at timestamptz);
CREATE FUNCTION faults.reply_journaled() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = faults AS $$
BEGIN
    INSERT INTO replies VALUES (NEW.step_key, clock_timestamp());
    RETURN NULL;
END
$$;
CREATE TRIGGER journaled AFTER INSERT OR UPDATE ON agentos.model_replies FOR EACH ROW WHEN (NEW.completed)
    EXECUTE FUNCTION faults.reply_journaled();

CREATE FUNCTION faults.run_ended() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = faults AS $$
BEGIN
    INSERT INTO ended VALUES (NEW.id, pg_current_xact_id());
    RETURN NULL;
END
$$;
CREATE TRIGGER ended AFTER UPDATE ON agentos.runs FOR EACH ROW
    WHEN (OLD.status IN ('queued', 'waiting', 'needs_operator') AND NEW.status = 'cancelled')
    EXECUTE FUNCTION faults.run_ended();

-- Who ends a run that nobody holds closes its begun steps as they are, whatever epoch they were begun in.
CREATE VIEW faults.zombies AS
SELECT o.* FROM faults.older o
WHERE NOT (o.status = 'unknown' AND EXISTS (SELECT FROM faults.ended e WHERE e.run_id = o.run_id AND e.xid = o.xid));
"""


async def install(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_WITNESS)
    finally:
        await connection.close()


async def ask(dsn: str, query: str, *parameters: Any) -> list[asyncpg.Record]:
    """As superuser, past every service."""
    connection = await asyncpg.connect(dsn, timeout=5, server_settings={"search_path": "agentos"})
    try:
        found: list[asyncpg.Record] = await connection.fetch(query, *parameters)
        return found
    finally:
        await connection.close()
