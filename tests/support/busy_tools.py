"""A tool for a real worker that keeps the whole event loop busy, for longer than a lease lasts.

A worker takes it by `AGENTOS_ADAPTERS`.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

import anyio

from adapters.inproc.tool import PythonTool
from ports.context import AuthContext
from ports.messages import Json
from ports.tool import ToolSpec
from stack_a.lease import LEASE

NAME: Final = "count"
BEGUN: Final = "TEST_BEGUN"
"""The environment variable with the path of a file that gets a line for each call."""
ADAPTERS: Final = '{"tool": {"adapter": "inproc", "config": {"tools": ["tests.support.busy_tools:COUNT"]}}}'
BUSY_FOR: Final = LEASE + timedelta(seconds=2)


async def _count(_auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
    with Path(os.environ[BEGUN]).open("a") as lines:  # noqa: ASYNC230 - a line in a file of the test's own
        lines.write(key + "\n")
    # A write that is on its way would meet its time limit, and the run be handed back: that is not what this is about.
    await anyio.sleep(1)
    time.sleep(BUSY_FOR.total_seconds())  # noqa: ASYNC251 - that is the point of it
    return {"counted": True}


COUNT: Final = PythonTool(
    spec=ToolSpec(
        name=NAME,
        description="Counts, and lets nobody else do anything meanwhile.",
        input_schema={"type": "object", "properties": {}, "additionalProperties": False},
        effect="pure",
        timeout=timedelta(minutes=2),
    ),
    act=_count,
)
