"""An unsafe tool for a real worker: it writes each call into a ledger, and waits there while it is told to.

A worker takes it by `AGENTOS_ADAPTERS`, under the name of a tool that the demo model knows to ask for.
"""

import os
from pathlib import Path
from typing import Final

import anyio

from adapters.inproc.tool import PythonTool
from ports.context import AuthContext
from ports.messages import Json
from ports.tool import ToolSpec

LEDGER: Final = "TEST_LEDGER"
"""The environment variable with the ledger's path. While a file of that name with `.hold` exists, calls don't return."""

ADAPTERS: Final = '{"tool": {"adapter": "inproc", "config": {"tools": ["tests.support.unsafe_tools:CALCULATOR"]}}}'


async def _calculate(_auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
    ledger = Path(os.environ[LEDGER])
    with ledger.open("a") as lines:  # noqa: ASYNC230 - a line in a file of the test's own
        lines.write(key + "\n")
    while ledger.with_suffix(".hold").exists():  # noqa: ASYNC110 - the test is another process
        await anyio.sleep(0.05)
    return {"result": 4}


CALCULATOR: Final = PythonTool(
    spec=ToolSpec(
        name="calculator",
        description="Evaluates an expression, and must not be asked twice.",
        input_schema={
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
            "additionalProperties": False,
        },
        effect="unsafe",
    ),
    act=_calculate,
)
