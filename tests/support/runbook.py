"""A runbook's commands, taken from its page as they are written, and run on a node under test."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Final

import anyio

from tests.support.node import ROOT, NodeUnderTest

_SHELLS: Final = re.compile(r"[|&;<>$`*?\\~(){}\[\]]")
"""What a shell makes something else of than a word."""
_FENCE: Final = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[list[str]]:
    """The code blocks of `runbooks/<page>.md`, each as its lines."""
    text = (ROOT / "runbooks" / f"{page}.md").read_text()
    return [block.splitlines() for block in _FENCE.findall(text)]


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Poll something outside of our process, bounded."""
    with anyio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - another process sets no event of ours
            await anyio.sleep(0.1)


def status_of(node: NodeUnderTest, run_id: str) -> str:
    with node.client() as client:
        return str(client.run(run_id)["status"])


class Operator:
    """Somebody with a shell at the top of the repository, where `./agentos` is the node's command."""

    def __init__(self, node: NodeUnderTest, desk: Path) -> None:
        self._node = node
        self._desk = desk
        # What the script of that name does once everything is installed.
        script = desk / "agentos"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m deploy.cli.main "$@"\n')
        script.chmod(0o755)

    def does(self, line: str, **values: str) -> subprocess.CompletedProcess[str]:
        """A line as it is written, with the page's `<names>` replaced and the default port by the node's own."""
        for name, value in values.items():
            line = line.replace(f"<{name}>", value)
        assert "<" not in line, f"{line!r} has a name without a value"
        line = line.replace("127.0.0.1:8080", f"127.0.0.1:{self._node.ports['stack-a']}")
        script, *words = shlex.split(line, comments=True)
        if script == "./agentos" and not any(map(_SHELLS.search, words)):
            with chdir(self._desk):
                return self._node.command(*words)
        return subprocess.run(
            ["/bin/sh", "-c", line],
            env=self._node.environ,
            cwd=self._desk,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def follows(self, block: list[str], **values: str) -> str:
        """Every line of a block, each of which must work; what they said."""
        said = ""
        for line in block:
            done = self.does(line, **values)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            said += done.stdout + done.stderr
        return said
