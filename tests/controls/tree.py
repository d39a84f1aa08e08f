"""A copy of the tree in which a control may be missing, and tests that are run there."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final

from msgspec import Struct

from tests.controls.removal import Removal
from tests.controls.watch import ASKED, CHANGED, REPORT
from tests.support.named_tests import ROOT

_CONTRACTS: Final = "conformance/"
_LONGEST_SECONDS: Final = 900.0
"""Of a run of one test: a node that never comes up is waited for by its test, for minutes."""
_EACH_SECONDS: Final = 120.0
"""More for each other one of the run."""
_QUIETLY: Final = ("-q", "--tb=short", "-p", "no:cacheprovider", "-p", "tests.controls.watch")
_UNDEFINED: Final = "E9,F821,F822,F823"


class Said(Struct, frozen=True):
    verdict: str
    why: str
    """The class of what was raised."""


class Tree:
    """Only one run at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._environ = os.environ | {"PYTHONPATH": str(root)}
        self._writes = 0
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Ends the run, and each that begins later: none of their tests has said anything. From another thread."""
        self._stopped = True
        if (process := self._running) is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    @contextmanager
    def without(self, removal: Removal) -> Iterator[None]:
        path = self._root / removal.path
        whole = path.read_text(encoding="utf-8")
        self._write(path, taken_out(removal, whole))
        try:
            yield
        finally:
            self._write(path, whole)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        # What was compiled is known by size and second, which two removals may have in common.
        self._writes += 1
        second = int(path.stat().st_mtime) + self._writes
        os.utime(path, (second, second))
        if path.suffix == ".py":
            Path(cache_from_source(str(path))).unlink(missing_ok=True)

    def broken_by(self, removal: Removal) -> str | None:
        """Names that are nobody's in the code that is left, which proves nothing then, whatever fails."""
        if not removal.path.endswith(".py"):
            return None
        ruff = str(Path(sys.executable).with_name("ruff"))
        command = (ruff, "check", "--isolated", "--no-cache", "-q", "--select", _UNDEFINED, removal.path)
        done = subprocess.run(command, cwd=self._root, check=False, text=True, capture_output=True)
        return done.stdout.strip() if done.returncode != 0 else None

    def run(self, tests: Iterable[str], *, changed: str = "") -> dict[str, Said]:
        """What each of them said; those that didn't come to run are missing, as all are where `changed`, the path of a
        module, is none any more."""
        asked = sorted(set(tests))
        with tempfile.NamedTemporaryFile(prefix="agentos-controls-", suffix=".json") as report:
            process = subprocess.Popen(
                (sys.executable, "-m", "pytest", *_QUIETLY, *files_of(asked)),
                cwd=self._root,
                env=self._environ | {ASKED: " ".join(asked), REPORT: report.name, CHANGED: changed},
                stdout=_output(),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running = process
            with suppress(subprocess.TimeoutExpired):
                process.wait(0 if self._stopped else _LONGEST_SECONDS + _EACH_SECONDS * (len(asked) - 1))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._running = None
            told = Path(report.name).read_bytes()
        return {test: Said(*said) for test, said in json.loads(told or b"{}").items()}


def _output() -> int | None:
    """What pytest writes is of interest to whoever writes a removal, and to nobody else."""
    return None if os.environ.get("AGENTOS_CONTROLS_VERBOSE") else subprocess.DEVNULL


@contextmanager
def copied() -> Iterator[Tree]:
    """The tree as it is on the disk, without what git ignores."""
    with tempfile.TemporaryDirectory(prefix="agentos-controls-") as made:
        # Services and PostgreSQL may run as somebody else.
        root = Path(made)
        root.chmod(0o755)
        listed = subprocess.run(
            ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        (root / ".venv").symlink_to(Path(sys.prefix).resolve())
        yield Tree(root)


def taken_out(removal: Removal, whole: str) -> str:
    """`whole` without the control. Pure."""
    times = whole.count(removal.old)
    if times != 1:
        raise ValueError(f"{removal.row}: {removal.old!r} occurs {times} times in {removal.path}, not once")
    return whole.replace(removal.old, removal.new)


def files_of(tests: Iterable[str]) -> list[str]:
    """Where they are collected: a contract's in the tests of each adapter that it binds."""
    paths = {test.partition("::")[0] for test in tests}
    kit = {path.removesuffix(".py").replace("/", ".") for path in paths if path.startswith(_CONTRACTS)}
    return sorted(
        {path for path in paths if not path.startswith(_CONTRACTS)} | {path for one in kit for path in bound(one)}
    )


def bound(module: str) -> list[str]:
    """Files of tests/contract that import `module` or the one that gathers it (`run_state` has `run_state_claims`)."""
    found = []
    for path in sorted((ROOT / "tests" / "contract").glob("test_*.py")):
        imported = re.findall(
            r"^from (conformance\.\w+) import \w*Contract\b", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        if any(module == one or module.startswith(f"{one}_") for one in imported):
            found.append(path.relative_to(ROOT).as_posix())
    return found
