"""The runbook `needs-operator`, followed on a real node: a worker is killed while an unsafe tool is at work.

Once word by word, and then each of its decisions in turn.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from adapters.postgres.bootstrap import ADMIN
from deploy import credentials
from deploy.catalogue import environment_file
from tests.support.node import ROOT, NodeUnderTest
from tests.support.postgres import execute
from tests.support.runbook import Operator, blocks
from tests.support.unsafe_tools import ADAPTERS, LEDGER

pytestmark = pytest.mark.anyio

# A lease lasts 25 s; then the sweep, and the run itself.
TAKEOVER_SECONDS = 60


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    node = NodeUnderTest(tmp_path_factory.mktemp("operator") / "home")
    try:
        node.up()
        node.supervisor.stop("stack-a-worker")
        # A replay decides with the tools that the worker offers.
        node.environ["AGENTOS_ADAPTERS"] = ADAPTERS
        yield node
    finally:
        gone = node.agentos("nuke", "--hard", "--yes-really")
        assert gone.returncode == 0, gone.stderr


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger") / "calls"


@contextmanager
def worker(node: NodeUnderTest, ledger: Path) -> Iterator[None]:
    """A worker of the node with the unsafe tool; killed at the end."""
    service = msgspec.json.decode(environment_file(node.node, "stack-a-worker").read_bytes(), type=dict[str, str])
    own = {"AGENTOS_ADAPTERS": ADAPTERS, LEDGER: str(ledger)}
    command = [sys.executable, "-m", "deploy.roots.stack_a_worker"]
    with subprocess.Popen(command, env=service | own, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Poll something outside of our process, bounded."""
    with anyio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - another process sets no event of ours
            await anyio.sleep(0.1)


def calls(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


def status_of(node: NodeUnderTest, run_id: str) -> str:
    with node.client() as client:
        return str(client.run(run_id)["status"])


async def park(node: NodeUnderTest, ledger: Path) -> list[str]:
    hold = ledger.with_suffix(".hold")
    hold.touch()
    with node.client() as client:
        run_ids = [client.create_run("agt_demo", "What is 2 + 2?").run_id for _ in range(5)]
    with worker(node, ledger):
        await until(lambda: len(calls(ledger)) == len(run_ids))
    with worker(node, ledger):
        await until(lambda: all(status_of(node, run_id) == "needs_operator" for run_id in run_ids), TAKEOVER_SECONDS)
    hold.unlink()
    return run_ids


@pytest.fixture(scope="module")
def parked(node: NodeUnderTest, ledger: Path) -> list[str]:
    """Five runs that wait for an operator."""
    return anyio.run(park, node, ledger)


def said(node: NodeUnderTest, *arguments: str, code: int = 0) -> str:
    done = node.command(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def said_json(node: NodeUnderTest, *arguments: str, code: int = 0) -> Any:
    done = node.command(*arguments, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return msgspec.json.decode(done.stdout)


async def test_the_page_is_followed_as_it_is_written(
    node: NodeUnderTest, parked: list[str], ledger: Path, tmp_path: Path
) -> None:
    operator, run_id = Operator(node, tmp_path), parked[4]
    look, (done, *_) = blocks("needs-operator")

    looked = operator.follows(look, run_id=run_id)
    operator.follows([done], run_id=run_id, n="2")
    with worker(node, ledger):
        await until(lambda: status_of(node, run_id) == "succeeded")

    assert f"{run_id}:2" in looked
    assert calls(ledger).count(f"{run_id}:2") == 1


async def test_a_cancelled_run_is_not_retried_over_an_unsafe_call(node: NodeUnderTest, parked: list[str]) -> None:
    run_id = parked[0]

    assert "is cancelled" in said(node, "runs", "cancel", run_id, "--reason", "enough")
    assert "./agentos runs retry" in said(node, "runs", "show", run_id)
    refused = said(node, "runs", "retry", run_id, code=1)

    assert "step 2, a call of 'calculator', which may have taken effect" in refused
    assert "all equal; the run is cancelled" in said(node, "replay", run_id)


async def test_an_operator_has_an_interrupted_call_made_once_more(
    node: NodeUnderTest, parked: list[str], ledger: Path
) -> None:
    run_id = parked[1]
    of_this_run = f"{run_id}:2"

    waiting = said_json(node, "runs", "list", "--status", "needs_operator")
    shown = said(node, "runs", "show", run_id)
    before = said(node, "replay", run_id)
    resolved = said(node, "runs", "resolve", run_id, "--step", "2", "--retry")
    again = node.command("runs", "resolve", run_id, "--step", "2", "--retry")
    with worker(node, ledger):
        await until(lambda: status_of(node, run_id) == "succeeded")

    assert run_id in [run["run_id"] for run in waiting]
    assert f"with the key {of_this_run}" in shown
    assert f"./agentos runs resolve {run_id} --step 2" in shown
    assert "2 decisions, all equal; the run is needs_operator" in before
    assert f"{run_id} is queued" in resolved
    assert (again.returncode, "conflict" in again.stderr) == (1, True)
    assert calls(ledger).count(of_this_run) == 2
    assert said(node, "replay", run_id) == "4 decisions, all equal\n"


@pytest.mark.parametrize(
    ("place", "decision", "result"),
    [(2, ("--done", '{"result": 4}'), '{"result":4}'), (3, ("--fail", "it never came"), "tool_failed: it never came")],
    ids=["done", "fail"],
)
async def test_an_operator_says_what_became_of_a_call(
    node: NodeUnderTest, parked: list[str], ledger: Path, *, place: int, decision: tuple[str, ...], result: str
) -> None:
    run_id, before = parked[place], calls(ledger)

    said(node, "runs", "resolve", run_id, "--step", "2", *decision)
    with worker(node, ledger):
        await until(lambda: status_of(node, run_id) == "succeeded")

    assert calls(ledger) == before
    assert result in said(node, "runs", "show", run_id)
    assert said(node, "replay", run_id) == "4 decisions, all equal\n"


async def test_a_fork_repeats_nothing_and_replay_finds_what_was_forged(
    node: NodeUnderTest, parked: list[str], ledger: Path
) -> None:
    origin, before = parked[1], calls(ledger)

    run_id = said_json(node, "runs", "fork", origin, "--from-step", "2")["run_id"]
    with worker(node, ledger):
        await until(lambda: status_of(node, run_id) == "succeeded")

    assert calls(ledger) == before
    assert said(node, "replay", run_id) == f"2 decisions, all equal; what came before them is of {origin}\n"
    assert f"from {origin} after step 2" in said(node, "runs", "show", run_id)
    assert "only a failed or cancelled run" in said(node, "runs", "retry", run_id, code=1)

    password = credentials.database_passwords(node.node).admin
    forge = f"UPDATE agentos.steps SET output = '{{\"result\": 5}}' WHERE n = 2 AND run_id = '{run_id[4:]}'"
    await execute(credentials.embedded_url(ADMIN, password, node.ports["postgres"]), forge)

    assert "one differs at step 3" in said(node, "replay", run_id, code=1)
    found = said_json(node, "replay", run_id, code=1)
    assert (found["decisions"], found["divergence"]["step"]) == (0, 3)


async def test_replay_finds_tools_that_are_not_those_of_then(node: NodeUnderTest, parked: list[str]) -> None:
    described_otherwise = node.environ.pop("AGENTOS_ADAPTERS")
    try:
        assert "one differs at step 1" in said(node, "replay", parked[1], code=1)
    finally:
        node.environ["AGENTOS_ADAPTERS"] = described_otherwise
