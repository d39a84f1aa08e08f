"""The example of `docs/tools.md` works as it is printed there."""

import os
import re
from pathlib import Path
from typing import Final

import pytest

from adapters.process_tools.port import SPEC, ProcessToolsConfig
from conformance.clock import ManualClock
from conformance.people import ACME, GLOBEX
from conformance.tool import TIMEOUT
from ports.adapter import Given
from ports.errors import Unavailable
from ports.tool import ToolCall, ToolResult

PAGE: Final = Path(__file__).parents[2] / "docs" / "tools.md"
FILE: Final = re.compile(r"^`/etc/agentos/([a-z.]+)`:\n\n```[a-z]+\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.anyio


@pytest.fixture
def config(tmp_path: Path) -> ProcessToolsConfig:
    """The files of the page, and a spool of the test's own."""
    spool = tmp_path / "spool"
    spool.mkdir()
    for name, text in FILE.findall(PAGE.read_text()):
        (tmp_path / name).write_text(text.replace("/var/spool/tickets", str(spool)))
    assert {path.name for path in tmp_path.iterdir()} == {"tools.json", "uptime.sh", "ticket.py", "spool"}
    return ProcessToolsConfig(file=str(tmp_path / "tools.json"))


@pytest.mark.skipif(not os.path.exists("/proc/uptime"), reason="the example reads Linux' /proc")  # noqa: PTH110 - at import
async def test_the_tool_in_shell_answers(config: ProcessToolsConfig) -> None:
    async with SPEC.open(config, Given(clock=ManualClock())) as tools:
        result = await tools.invoke(ACME, ToolCall(name="uptime", arguments={}, key="run_1:1"), timeout=TIMEOUT)

    assert result.output["seconds"] > 0


async def test_the_tool_in_python_acts_and_tells_afterwards_what_it_did(config: ProcessToolsConfig) -> None:
    call = ToolCall(name="print_ticket", arguments={"guest": "Ann"}, key="run_1:2")

    async with SPEC.open(config, Given(clock=ManualClock())) as tools:
        before = await tools.reconcile(ACME, call.name, call.key)
        result = await tools.invoke(ACME, call, timeout=TIMEOUT)
        after = await tools.reconcile(ACME, call.name, call.key)
        others = await tools.reconcile(GLOBEX, call.name, call.key)

    assert result == ToolResult(output={"ticket_for": "Ann"})
    assert (before, after, others) == (None, result, None)


async def test_the_model_is_told_why_it_failed(config: ProcessToolsConfig) -> None:
    call = ToolCall(name="print_ticket", arguments={"guest": "nobody"}, key="run_1:2")

    async with SPEC.open(config, Given(clock=ManualClock())) as tools:
        with pytest.raises(Unavailable, match=r"print_ticket exited with 1: there is no guest of this name$"):
            await tools.invoke(ACME, call, timeout=TIMEOUT)
