"""Five durable steps per workflow on DBOS Transact, in the environment that `tests.bench.engine_dbos` makes for it.

    <its python> dbos_peer.py <database url> <concurrency>

Imports nothing of ours, so that it runs where only DBOS is. Writes `ready` once warm; for each line it then reads, a
number of seconds, it works for that long and writes what it did as JSON. Workflows are called directly and awaited, which
is DBOS's quickest way: no queue, no polling.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from typing import Any

WARM_UP = 8


async def main(url: str, concurrency: int) -> None:
    # By name: the checkers of the repository know nothing of it.
    dbos: Any = importlib.import_module("dbos").DBOS
    dbos(
        config={
            "name": "peer",
            "system_database_url": url,
            "sys_db_pool_size": max(20, concurrency),
            "log_level": "ERROR",
            "executor_id": f"peer-{os.getpid()}",
            "application_version": "bench",
        }
    )

    async def say_what_to_call(n: int) -> dict[str, Any]:
        return {"text": None, "tool_calls": [{"id": f"call_{n}", "name": "probe", "arguments": '{"n": 1}'}]}

    async def answer(n: int) -> dict[str, int]:
        return {"n": n}

    model, tool = dbos.step()(say_what_to_call), dbos.step()(answer)

    async def five_steps(question: str) -> str:
        for n in range(2):
            await model(n)
            await tool(n)
        await model(2)
        return f"{question} done"

    run = dbos.workflow()(five_steps)
    dbos.launch()
    await asyncio.gather(*(run("Probe.") for _ in range(min(WARM_UP, concurrency))))
    say("ready")
    loop = asyncio.get_running_loop()
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        say(json.dumps(await measured(run, concurrency, float(line))))
    dbos.destroy()


async def measured(run: Any, concurrency: int, seconds: float) -> dict[str, float]:
    over = time.perf_counter() + seconds
    began, cpu = time.perf_counter(), time.process_time()

    async def one() -> int:
        done = 0
        while time.perf_counter() < over:
            await run("Probe.")
            done += 1
        return done

    counts = await asyncio.gather(*(one() for _ in range(concurrency)))
    return {"runs": sum(counts), "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
