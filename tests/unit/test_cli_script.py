"""The script at the root: what it does before Python is there. With a `uv` and an interpreter of the test's own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "agentos"

# Makes a virtual environment whose interpreter tells what it was asked to do.
FAKE_UV = """#!/bin/sh
echo "$@" >>"$CALLS"
echo "cache=${UV_CACHE_DIR:-}" >>"$CALLS"
mkdir -p "$UV_PROJECT_ENVIRONMENT/bin"
printf '#!/bin/sh\\nprintf "%%s\\\\n" "$@"\\necho "path=$PYTHONPATH safe=$PYTHONSAFEPATH"\\nexit 7\\n' \
    >"$UV_PROJECT_ENVIRONMENT/bin/python"
chmod +x "$UV_PROJECT_ENVIRONMENT/bin/python"
"""


class Tree:
    """A copy of what the script needs, in a folder with a blank in its name."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "my clone"
        self.root.mkdir()
        shutil.copy(SCRIPT, self.root / "agentos")
        (self.root / "uv.lock").write_text("version = 1\n")
        (self.root / "pyproject.toml").write_text("[project]\n")
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "uv").write_text(FAKE_UV)
        (tools / "uv").chmod(0o755)
        self.calls = tmp_path / "calls"
        self.home = tmp_path / "user"
        self.home.mkdir()
        self._path = f"{tools}:{os.environ['PATH']}"

    def run(
        self, *arguments: str, cwd: Path | None = None, script: Path | None = None, home: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": self._path, "HOME": home or str(self.home), "CALLS": str(self.calls)}
        command = [str(script or self.root / "agentos"), *arguments]
        return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=30)

    def synced(self) -> list[str]:
        """The `uv` command lines so far."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if not line.startswith("cache=")]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_first_start_syncs_from_the_lock_and_hands_over(tree: Tree) -> None:
    done = tree.run("run", "agt_demo", "two words")

    [sync] = tree.synced()
    assert sync.startswith(f"sync --project {tree.root} --frozen --inexact --extra all --no-dev --python ")
    assert done.stdout.splitlines() == [
        "-m",
        "deploy.cli.main",
        "run",
        "agt_demo",
        "two words",
        f"path={tree.root} safe=1",
    ]
    assert done.returncode == 7, "the exit code is the command's"
    assert "first start" in done.stderr


def test_the_second_start_syncs_nothing_and_says_nothing(tree: Tree) -> None:
    tree.run("status")

    done = tree.run("status")

    assert len(tree.synced()) == 1
    assert done.stderr == ""


def test_a_changed_lock_is_synced_again(tree: Tree) -> None:
    tree.run("status")
    (tree.root / "uv.lock").write_text("version = 2\n")

    tree.run("status")

    assert len(tree.synced()) == 2
    assert tree.synced()[1].endswith("--quiet")


def test_the_tests_bring_their_tools_and_the_node_needs_nothing_more_then(tree: Tree) -> None:
    tree.run("test")
    tree.run("up")

    [sync] = tree.synced()
    assert "--extra all --group dev" in sync


def test_it_works_through_a_link_and_from_elsewhere(tree: Tree, tmp_path: Path) -> None:
    link = tmp_path / "bin-agentos"
    link.symlink_to(Path("my clone") / "agentos")

    done = tree.run("status", cwd=Path("/"), script=link)

    assert f"path={tree.root} safe=1" in done.stdout


def test_a_home_that_can_not_be_written_to_gets_its_cache_in_the_clone(tree: Tree) -> None:
    tree.run("status", home="/proc/nowhere")

    assert f"cache={tree.root}/.uv/cache" in tree.calls.read_text()


def test_a_failed_sync_stops_with_what_to_do(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "tools" / "uv").write_text("#!/bin/sh\nexit 1\n")

    done = tree.run("status")

    assert done.returncode == 3
    assert "Check the network" in done.stderr
