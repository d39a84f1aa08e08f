"""The tools of the agent under test, for the worker's in-process Tool port: each call is a line in a file before it acts.

A line is written by one `write` to a file opened for appending, so that it survives a SIGKILL and never mixes with
another process's.
"""

import asyncio
import os
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Struct

from adapters.inproc.tool import PythonTool
from ports.context import AuthContext
from ports.messages import Json
from ports.run_state import EffectClass
from ports.tool import ToolSpec

SINK: Final = "AGENTOS_FAULTS_SINK"
UNSAFE: Final = "send"


class Call(Struct, frozen=True, kw_only=True):
    key: str
    tool: str
    place: str
    """Which call of which run the model asked for, in the driver's own words."""


def _tool(name: str, effect: EffectClass) -> PythonTool:
    async def act(_auth: AuthContext, arguments: dict[str, Json], key: str) -> Json:
        line = msgspec.json.encode(Call(key=key, tool=name, place=arguments["place"])) + b"\n"
        handle = os.open(os.environ[SINK], os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
        await asyncio.sleep(arguments["seconds"])
        return {"done": arguments["place"]}

    schema: dict[str, Json] = {
        "type": "object",
        "properties": {"place": {"type": "string"}, "seconds": {"type": "number"}},
        "required": ["place", "seconds"],
        "additionalProperties": False,
    }
    spec = ToolSpec(
        name=name,
        description=f"{name}, written down",
        input_schema=schema,
        effect=effect,
        timeout=timedelta(seconds=120),
    )
    return PythonTool(spec=spec, act=act)


NOTE: Final = _tool("note", "idempotent")
LOOK: Final = _tool("look", "pure")
SEND: Final = _tool(UNSAFE, "unsafe")
NAMES: Final = ("look", "note", UNSAFE)
REFERENCES: Final = tuple(f"tests.faults.tools:{name.upper()}" for name in NAMES)


def read_calls(path: str) -> list[Call]:
    with open(path, "rb") as file:  # noqa: PTH123 - the path is a string of the environment
        return [msgspec.json.decode(line, type=Call) for line in file]
