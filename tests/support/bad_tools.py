"""Tools of a real worker that harm it: one keeps its event loop for ever, one ends its process.

A worker takes them by `AGENTOS_ADAPTERS`, beside the built-in ones and under the names of two that the demo model knows to
ask for. Neither gives the worker a moment to note that the call began, as a defect would not.
"""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from adapters.inproc.tool import PythonTool
from ports.context import AuthContext
from ports.messages import Json
from ports.tool import ToolSpec
from stack_a import lease

CALLS: Final = "TEST_CALLS"
"""The environment variable with the path of a file that gets a line for each call."""
ADAPTERS: Final = (
    '{"tool": {"adapter": "joined", "config": {"parts": [{"adapter": "inproc", "config": {"tools": '
    '["tests.support.bad_tools:KEEPS_THE_LOOP", "tests.support.bad_tools:ENDS_THE_PROCESS"]}}, {"adapter": "builtin", '
    '"config": {"enabled": ["calculator"]}}]}}}'
)
KEEPING: Final = "What time is it?"
ENDING: Final = 'How many words are in "one two"?'
"""What to ask the demo agent for, so that it calls them."""
HANGS_AFTER: Final = timedelta(seconds=20)
"""What two minutes are to others, in a worker with these tools: nobody has to wait for more to see it."""
if CALLS in os.environ:
    setattr(lease, "BUSY_AT_MOST", HANGS_AFTER)  # noqa: B010 - a constant to everybody else


def _note(key: str) -> None:
    with Path(os.environ[CALLS]).open("a") as lines:
        lines.write(key + "\n")


async def keep_the_loop(_auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
    _note(key)
    while True:
        time.sleep(1)  # noqa: ASYNC251 - that is the point of it


async def end_the_process(_auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
    _note(key)
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def _spec(name: str, arguments: dict[str, Json]) -> ToolSpec:
    schema: dict[str, Json] = {"type": "object", "properties": arguments, "additionalProperties": False}
    return ToolSpec(name=name, description="Harms its worker.", input_schema=schema, effect="pure")


KEEPS_THE_LOOP: Final = PythonTool(spec=_spec("clock", {}), act=keep_the_loop)
ENDS_THE_PROCESS: Final = PythonTool(spec=_spec("text_stats", {"text": {"type": "string"}}), act=end_the_process)
