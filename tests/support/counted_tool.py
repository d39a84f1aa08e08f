"""A tool for a real worker that writes down when each call began, and takes a second.

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

NAME: Final = "probe"
BEGUN: Final = "TEST_BEGUN"
"""The environment variable with the path of a file that gets a line for each call: seconds since the epoch, and the key."""
ADAPTERS: Final = '{"tool": {"adapter": "inproc", "config": {"tools": ["tests.support.counted_tool:PROBE"]}}}'


async def _probe(_auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
    with Path(os.environ[BEGUN]).open("a") as lines:  # noqa: ASYNC230 - a line in a file of the test's own
        lines.write(f"{time.time()} {key}\n")
    await anyio.sleep(1)
    return {"probed": True}


PROBE: Final = PythonTool(
    spec=ToolSpec(
        name=NAME,
        description="Is called.",
        input_schema={"type": "object", "properties": {}, "additionalProperties": False},
        effect="pure",
        timeout=timedelta(minutes=2),
    ),
    act=_probe,
)
