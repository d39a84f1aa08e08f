"""Taking a node away: nothing by accident, everything on purpose, and nothing else."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from deploy.catalogue import layout_of
from deploy.processes import port_is_free, processes_of
from tests.support.node import NodeUnderTest


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    node = NodeUnderTest(tmp_path_factory.mktemp("doomed") / "home")
    try:
        node.up()
        yield node
    finally:
        node.agentos("nuke", "--hard", "--yes-really")


def test_without_consent_nothing_is_removed(node: NodeUnderTest) -> None:
    before = node.pids()

    for line in (("nuke",), ("nuke", "--hard")):
        done = node.agentos(*line)
        assert done.returncode != 0
        assert "would stop" in done.stdout
        assert "--yes-really" in done.stderr

    assert node.pids() == before
    assert node.tokens()


def test_the_soft_one_stops_everything_and_keeps_the_data(node: NodeUnderTest) -> None:
    with node.client() as client:
        run_id = client.create_run("agt_demo", "What is 8 / 2?").run_id
    tokens = node.tokens()

    done = node.agentos("nuke", "--yes-really")

    assert done.returncode == 0, done.stderr
    assert processes_of(node.node) == []
    assert all(port_is_free("127.0.0.1", port) for port in node.ports.values())
    assert not node.node.run_dir.exists()
    assert node.report("nuke")["ok"]
    node.up()
    assert node.tokens() == tokens
    with node.client() as client:
        assert client.run(run_id)["run_id"] == run_id


def test_the_hard_one_leaves_the_reports_and_nothing_else(node: NodeUnderTest) -> None:
    state = layout_of(node.node).state

    done = node.agentos("nuke", "--hard", "--yes-really")

    assert done.returncode == 0, done.stderr
    assert processes_of(node.node) == []
    assert all(port_is_free("127.0.0.1", port) for port in node.ports.values())
    assert not state.exists()
    assert sorted(path.name for path in node.node.home.iterdir()) == ["reports"]
    assert {check["name"]: check["ok"] for check in node.report("nuke")["checks"]} == {
        "no process is left": True,
        "no socket is left": True,
        "no file is left": True,
    }


def test_it_can_be_repeated_when_nothing_is_there(node: NodeUnderTest) -> None:
    assert node.agentos("nuke", "--hard", "--yes-really").returncode == 0


def test_a_broken_settings_file_does_not_keep_a_node_alive(node: NodeUnderTest) -> None:
    node.node.create()
    node.node.env_file.write_text("AGENTOS_NONSENSE=1\n")

    assert node.agentos("nuke", "--hard", "--yes-really").returncode == 0
    assert not node.node.env_file.exists()


@pytest.mark.parametrize("moment", ["making the database cluster", "… migrate", "services healthy 1/5"])
def test_an_up_that_was_killed_is_completed_by_the_next_one(node: NodeUnderTest, moment: str) -> None:
    flags = [word for name, port in node.ports.items() for word in (f"--port-{name}", str(port))]
    command = [sys.executable, "-m", "deploy.cli.main", "up", *flags]
    with subprocess.Popen(command, env=node.environ, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr is not None
        for line in killed.stderr:
            if moment in line:
                break
        killed.kill()

    assert node.up().ok

    assert node.agentos("nuke", "--hard", "--yes-really").returncode == 0
    assert processes_of(node.node) == []
