"""A redeploy under load: services follow one another, and nobody is refused. Long: `python -m tests.faults.redeploys`."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from deploy.bring_up import HEALTHY_SECONDS
from deploy.catalogue import environment_file
from deploy.handover import keeper
from tests.faults.redeploys import Load, entitle, redeployed
from tests.support.node import NodeUnderTest

# Many requests, and few runs: a redeploy shall not wait for what the worker has to do.
LOOKS = 4
SERVICES = {"postgres", "stack-a", "stack-a-worker", "stack-b", "admin"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    node = NodeUnderTest(tmp_path_factory.mktemp("redeployed") / "home")
    try:
        node.up()
        entitle(node)
        yield node
    finally:
        gone = node.agentos("nuke", "--hard", "--yes-really")
        assert gone.returncode == 0, gone.stderr


@pytest.mark.anyio
async def test_a_redeploy_onto_other_settings_refuses_nobody_and_loses_nothing(node: NodeUnderTest) -> None:
    before = node.pids()
    text = node.node.env_file.read_text().replace("#AGENTOS_LOG_LEVEL=info", "AGENTOS_LOG_LEVEL=debug")
    node.node.env_file.write_text(text)

    record = await redeployed(node, 1, looks=LOOKS)

    assert record.ok, str(record)
    assert float(str(record.figures["acked"])) >= 10
    after = node.pids()
    assert after.keys() == SERVICES
    assert {name for name in after if after[name] != before[name]} == SERVICES - {"postgres"}
    for name in ("stack-a", "stack-b"):
        assert '"AGENTOS_LOG_LEVEL":"DEBUG"' in environment_file(node.node, name).read_text()


def test_a_release_that_does_not_start_leaves_the_node_as_it_was(node: NodeUnderTest) -> None:
    before, settings = node.pids(), node.node.env_file.read_text()

    node.node.env_file.write_text(settings + "AGENTOS_OPENAI_BASE_URL=http://[half-an-address\n")
    began = time.monotonic()
    failed = node.agentos("redeploy")
    took = time.monotonic() - began

    assert failed.returncode == 1
    # What keeps dying is not waited for, though it lives for a moment each time.
    assert took < HEALTHY_SECONDS
    assert "stack-b-next is ready" in failed.stderr
    assert "InvalidArgument: a backend's base_url is" in node.command("logs", "stack-b-next").stdout
    assert node.pids() == before
    # What it would begin with again, should it die.
    assert "half-an-address" not in environment_file(node.node, "stack-b").read_text()
    assert httpx.get(f"{node.stack_b}/readyz", trust_env=False).status_code == 200
    # The next one, with the mistake taken back, finds nothing in its way.
    node.node.env_file.write_text(settings)
    assert node.agentos("redeploy").returncode == 0
    assert node.pids().keys() == SERVICES


@pytest.mark.anyio
@pytest.mark.parametrize("service", ["stack-a", "stack-b"])
async def test_a_redeploy_after_one_that_died_half_way_refuses_nobody(node: NodeUnderTest, service: str) -> None:
    """Another process stood in by then, and is the only one that serves."""
    load, began = Load(node, looks=LOOKS), time.monotonic()
    other = f"{service}-next"
    async with anyio.create_task_group() as group:
        # Few runs: the redeploy's own shall not wait behind many.
        group.start_soon(load.create, 0)
        for client in range(2):
            group.start_soon(load.chat, client)
        # Starting is quick, and to be killed is all it is for.
        with subprocess.Popen(  # noqa: ASYNC220 - see above
            [sys.executable, "-m", "deploy.cli.main", "redeploy"], env=node.environ, cwd="/", stderr=subprocess.DEVNULL
        ) as dying:
            door = node.node.supervisor_socket.with_name(f"{service}.sock")
            with anyio.fail_after(240):
                while not stands_in(node, other, door):  # noqa: ASYNC110 - another process does
                    await anyio.sleep(0.05)
            dying.kill()
        # As if the service had not come back.
        await anyio.to_thread.run_sync(node.supervisor.stop, service)
        only_one = {name: state.state for name, state in node.supervisor.states().items()}

        done = await anyio.to_thread.run_sync(partial(node.agentos, "redeploy", timeout=300))

        load.end()
    assert only_one[other] == "running"
    assert only_one[service] == "stopped"
    assert done.returncode == 0, done.stderr
    assert node.pids().keys() == SERVICES
    assert (load.refused, load.unanswered.total()) == (0, 0), load.unanswered
    assert {status for status in load.answers if status >= 500} == set()
    assert load.answers.total() > 2 * (time.monotonic() - began)


def stands_in(node: NodeUnderTest, name: str, door: Path) -> bool:
    state, who = node.supervisor.states().get(name), keeper(door)
    return state is not None and who is not None and who.pid == state.pid
