"""The engine's reference: how many small transactions per second the same server commits, asked in the cheapest way."""

import asyncio
import time
from typing import Final

import asyncpg

from tests.support.postgres import Server, execute

DATABASE: Final = "bench_reference"
# One message, one row updated, one row added, one commit. Each connection has a row of its own: nobody waits for a lock.
_CHANGE: Final = """
WITH counted AS (UPDATE counters SET n = n + 1 WHERE id = $1 RETURNING n)
INSERT INTO facts (counter, n, body) SELECT $1, n, $2 FROM counted
"""
_BODY: Final = "x" * 200


async def create_reference(server: Server, *, connections: int) -> None:
    """Its tables, in a database of its own on the same server."""
    await execute(server.dsn("postgres", "postgres"), f"CREATE DATABASE {DATABASE}")
    await execute(
        server.dsn("postgres", DATABASE),
        f"""
        CREATE TABLE counters (id integer PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50);
        INSERT INTO counters SELECT id, 0 FROM generate_series(1, {connections}) AS id;
        CREATE TABLE facts (
            counter integer NOT NULL, n bigint NOT NULL, body text NOT NULL, PRIMARY KEY (counter, n)
        );
        """,
    )


async def commits_per_second(server: Server, *, connections: int, seconds: float) -> float:
    opened = [await asyncpg.connect(server.dsn("postgres", DATABASE)) for _ in range(connections)]
    try:
        statements = [await connection.prepare(_CHANGE) for connection in opened]
        began = time.perf_counter()
        over = began + seconds

        async def commit(number: int) -> int:
            done = 0
            while time.perf_counter() < over:
                await statements[number - 1].fetch(number, _BODY)
                done += 1
            return done

        counts = await asyncio.gather(*(commit(number) for number in range(1, connections + 1)))
        return sum(counts) / (time.perf_counter() - began)
    finally:
        for connection in opened:
            await connection.close()
