"""`run-stuck` and `worker-lost` followed as they are written, on a real node whose tools harm its worker or whose runs are
out of time.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import msgspec
import pytest

from adapters.postgres.bootstrap import ADMIN
from deploy import credentials
from deploy.catalogue import environment_file
from tests.support import bad_tools
from tests.support.node import NodeUnderTest, running_node
from tests.support.postgres import execute
from tests.support.runbook import Operator, blocks, status_of, until

pytestmark = pytest.mark.anyio

WORKER = "stack-a-worker"
SUM = "What is 6 * 7?"
FAILED = 'agentos_run_completions_total{status="failed"}'


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    with running_node(tmp_path_factory.mktemp("harmed") / "home") as node:
        yield node


@pytest.fixture
def operator(node: NodeUnderTest, tmp_path: Path) -> Operator:
    return Operator(node, tmp_path)


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """The file that harmful tools write their calls to."""
    return tmp_path / "calls"


def built_with(node: NodeUnderTest, own: dict[str, str]) -> None:
    """Another worker: with these settings beside those that the catalogue gives it, as a build with such tools has them."""
    file = environment_file(node.node, WORKER)
    settings = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    settings.pop("AGENTOS_ADAPTERS", None)
    node.supervisor.stop(WORKER)
    file.write_bytes(msgspec.json.encode(settings | own))
    node.supervisor.start(WORKER)


def harmful(calls: Path) -> dict[str, str]:
    return {"AGENTOS_ADAPTERS": bad_tools.ADAPTERS, bad_tools.CALLS: str(calls)}


def made(calls: Path) -> list[str]:
    return calls.read_text().splitlines() if calls.exists() else []


def created(node: NodeUnderTest, text: str, **more: int) -> str:
    with node.client() as client:
        accepted = client.post("/v1/agents/agt_demo/runs", {"input": text, **more}, idempotency_key=uuid4().hex)
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["run_id"])


def metric(node: NodeUnderTest, series: str) -> float:
    """What the worker says now; nothing is zero."""
    text = httpx.get(f"http://127.0.0.1:{node.ports['worker']}/metrics", trust_env=False).text
    found = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return float(found[0].split()[-1]) if found else 0.0


def kills(node: NodeUnderTest) -> int:
    return node.node.supervisor_log.read_text().count("stack-a-worker (terminated by SIGKILL; not expected)")


async def died(node: NodeUnderTest, calls: Path, before: int, deaths: int) -> None:
    await until(lambda: len(made(calls)) == deaths and kills(node) - before == deaths)


def retried(said: str, run_id: str) -> str:
    [new] = {word.strip(".,;") for word in said.split() if word.startswith("run_")} - {run_id}
    return new


async def lapse(node: NodeUnderTest, run_id: str) -> None:
    """The lease of the dead worker that had the run ends now, and not in 25 seconds."""
    password = credentials.database_passwords(node.node).admin
    statement = (
        "UPDATE agentos.workers w SET lease_until = now() FROM agentos.runs r "
        f"WHERE w.id = r.worker_id AND r.id = '{run_id.removeprefix('run_')}'"
    )
    await execute(credentials.embedded_url(ADMIN, password, node.ports["postgres"]), statement)


async def test_run_stuck_until_its_deadline_because_the_gateway_is_away(
    node: NodeUnderTest, operator: Operator
) -> None:
    look, start, (_, retry) = blocks("run-stuck")
    before = metric(node, FAILED)
    node.supervisor.stop("stack-b")
    # The agent's own limit is 600 s; a request may say less.
    run_id = created(node, SUM, deadline_s=6)
    await until(lambda: status_of(node, run_id) == "failed")

    status, listed, shown, log = (
        operator.does(line.replace("status running", "status failed"), run_id=run_id) for line in look
    )
    after = metric(node, FAILED)
    operator.follows(start, run_id=run_id)
    again = retried(operator.follows([retry], run_id=run_id), run_id)
    await until(lambda: status_of(node, again) == "succeeded")

    assert (status.returncode, "stack-b         stopped" in status.stdout) == (1, True)
    assert re.search(rf"{run_id}  failed .* run_timeout", listed.stdout)
    assert "run_timeout: the run reached its deadline; its model call had failed before: " in shown.stdout
    assert f"Next: ./agentos runs retry {run_id}" in shown.stderr
    assert [json.loads(line)["event"] for line in log.stdout.splitlines()][:2] == ["step.model_retried", "run.finished"]
    assert after - before == 1


async def test_run_stuck_beyond_its_deadline_because_nobody_takes_it(node: NodeUnderTest, operator: Operator) -> None:
    look, start, (_, retry) = blocks("run-stuck")
    node.supervisor.stop(WORKER)
    run_id = created(node, SUM, deadline_s=6)
    with node.client() as client:
        deadline = datetime.fromisoformat(client.run(run_id)["deadline_at"])
    await until(lambda: datetime.now(UTC) > deadline)

    status, listed, waiting, _ = (
        operator.does(line.replace("status running", "status queued"), run_id=run_id) for line in look
    )
    operator.follows(start, run_id=run_id)
    await until(lambda: status_of(node, run_id) == "failed")
    ended = operator.does(look[2], run_id=run_id)
    again = retried(operator.follows([retry], run_id=run_id), run_id)
    # It has as long as the first one had; here that is enough.
    await until(lambda: status_of(node, again) in {"succeeded", "failed"})

    assert (status.returncode, "stack-a-worker  stopped" in status.stdout) == (1, True)
    assert run_id in listed.stdout
    assert re.search(r"status +queued", waiting.stdout)
    assert f"{deadline:%Y-%m-%d %H:%M:%S}" in waiting.stdout
    assert "run_timeout: the run reached its deadline\n" in ended.stdout
    assert "STEP" not in ended.stdout, "it never began"
    assert status_of(node, again) == "succeeded"


async def test_worker_lost_to_a_run_again_and_again_until_it_is_poison(
    node: NodeUnderTest, operator: Operator, calls: Path
) -> None:
    look, *_ = blocks("worker-lost")
    retry = blocks("run-stuck")[2][1]
    built_with(node, harmful(calls))
    before = kills(node)
    run_id = created(node, bad_tools.ENDING)
    shown: list[str] = []
    for death in range(1, 7):
        await died(node, calls, before, death)
        await until(lambda: operator.does(look[0]).returncode == 0)
        shown.append(operator.does(look[4], run_id=run_id).stdout)
        if death == 2:
            ended, log, running = (operator.does(line, run_id=run_id) for line in look[1:4])
        await lapse(node, run_id)
    await until(lambda: status_of(node, run_id) == "failed")

    last, counted = operator.does(look[4], run_id=run_id), metric(node, "agentos_run_recoveries_total")
    listed = operator.does("./agentos runs list --status failed")
    built_with(node, {})
    again = retried(operator.follows([retry], run_id=run_id), run_id)
    await until(lambda: status_of(node, again) == "succeeded")

    # The first time the call is hardly ever written down: the process ends too soon. From then on it is before it is made.
    for recovered, text in enumerate(shown[1:], start=1):
        assert f"recovered {recovered} times" in text
        assert re.search(r"^2 +tool +text_stats .* started *$", text, re.MULTILINE)
    assert "exited: stack-a-worker (terminated by SIGKILL; not expected)" in ended.stdout
    assert [(json.loads(line)["event"], json.loads(line)["epoch"]) for line in log.stdout.splitlines()] == [
        ("run.adopted", 2)
    ]
    assert run_id in running.stdout
    assert re.search(rf"{run_id}  failed .* poison", listed.stdout)
    assert "recovered 6 times" in last.stdout
    assert "poison: the run was taken over 6 times and is given up" in last.stdout
    assert re.search(r"^2 +tool +text_stats .* unknown ", last.stdout, re.MULTILINE)
    # Each worker counted one, and took that along.
    assert counted == 1
    assert made(calls) == [f"{run_id}:2"] * 6


async def test_worker_lost_whose_event_loop_a_tool_keeps_for_minutes(
    node: NodeUnderTest, operator: Operator, calls: Path
) -> None:
    """Those minutes are seconds here, see `bad_tools`."""
    look, _, ask, replace, after = blocks("worker-lost")
    built_with(node, harmful(calls))
    before = operator.does(look[2]).stdout
    run_id = created(node, bad_tools.KEEPING)
    await until(lambda: bool(made(calls)))
    other = created(node, SUM)

    early = [operator.does(line, run_id=run_id) for line in look]
    log = node.node.log_of(WORKER)
    await until(lambda: "its event loop does not answer" in log.read_text(), bad_tools.HANGS_AFTER.total_seconds() + 30)
    late = [operator.does(line, run_id=run_id) for line in look]
    behind = status_of(node, other)
    asked = operator.follows(ask, run_id=run_id)
    operator.follows(replace)
    await until(lambda: [status_of(node, one) for one in (run_id, other)] == ["cancelled", "succeeded"])
    said = operator.follows(after, run_id=run_id)

    for status, _, _, running, shown in (early, late):
        assert (status.returncode, "did not answer within" in status.stdout) == (1, True)
        assert re.search(r"stack-a-worker +running ", status.stdout)
        assert run_id in running.stdout
        assert re.search(r"^status +running$", shown.stdout, re.MULTILINE)
    assert early[2].stdout == before
    [told] = [json.loads(line) for line in late[2].stdout.removeprefix(before).splitlines()]
    assert (told["event"], told["reason"]) == ("worker.fenced_itself", "its event loop does not answer")
    assert re.match(r"bad_tools\.py:\d+ keep_the_loop < ", told["place"])
    assert behind == "queued", "it needs the worker as well"
    assert asked == f"{run_id} is running and asked to end\n"
    assert "cancelled" in said
    assert made(calls) == [f"{run_id}:2"], "the next worker did not make the call"
