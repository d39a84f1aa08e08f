"""TensorZero's gateway, in the environment that `tests.bench.gateway_peers` makes for it.

    <its python> tensorzero_peer.py <configuration file>

Imports nothing of ours. Writes `ready <base url>` once it serves; ends when it is told to.
"""

import asyncio
import importlib
import signal
import sys
from typing import Any


async def main(configuration: str) -> None:
    # By name: the checkers of the repository know nothing of it.
    start: Any = importlib.import_module("tensorzero.tensorzero")._start_http_gateway
    nothing = dict.fromkeys(("clickhouse_url", "postgres_url", "valkey_url"))
    gateway = await start(config_file=configuration, async_setup=True, **nothing)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    sys.stdout.write(f"ready {gateway.base_url}\n")
    sys.stdout.flush()
    await ended.wait()
    gateway.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
