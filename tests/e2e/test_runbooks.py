"""Each runbook followed once as it is written, on a real node that is in the state the page is about.

`needs-operator` is followed in `test_node_operator.py`, where runs wait for an operator.
"""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import asyncpg
import psutil
import pytest

from deploy import credentials
from deploy.cli.gateway_check import OPERATOR
from deploy.internal import open_gateway_configurations
from ports.errors import ResourceExhausted
from ports.gateway_configuration import Draft
from ports.messages import Json
from stack_a.lease import LEASE
from tests.support.node import NodeUnderTest, running_node
from tests.support.runbook import Operator, blocks, status_of, until

pytestmark = pytest.mark.anyio

QUESTION = "What is 6 * 7?"
TENANT = "tnt_demo"
# A lease to lapse, the sweep, and the run itself on a busy machine.
TAKEOVER_SECONDS = LEASE.total_seconds() + 30


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    with running_node(tmp_path_factory.mktemp("runbooks") / "home") as node:
        yield node


@pytest.fixture(scope="module")
def operator(node: NodeUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(node, tmp_path_factory.mktemp("desk"))


@contextmanager
def silent_gateway(node: NodeUnderTest) -> Iterator[None]:
    """A gateway that does not answer keeps runs in the middle of their first model call."""
    gateway = psutil.Process(node.pids()["stack-b"])
    gateway.suspend()
    try:
        yield
    finally:
        gateway.resume()


def created(node: NodeUnderTest, count: int = 1) -> list[str]:
    with node.client() as client:
        return [client.create_run("agt_demo", QUESTION).run_id for _ in range(count)]


def count(node: NodeUnderTest, run_ids: list[str], status: str) -> int:
    return [status_of(node, run_id) for run_id in run_ids].count(status)


def asked(node: NodeUnderTest, run_id: str) -> bool:
    """Whether its first model call is under way, in the eyes of the store."""
    done = node.command("runs", "show", run_id)
    return "model" in done.stdout and "started" in done.stdout


async def test_worker_lost_whose_process_is_gone(node: NodeUnderTest, operator: Operator) -> None:
    look, up, _, _, after = blocks("worker-lost")
    with silent_gateway(node):
        [run_id] = created(node)
        await until(lambda: asked(node, run_id))
        worker = node.pids()["stack-a-worker"]
        async with anyio.create_task_group() as group:
            # The supervisor is told first, so that it does not start another one.
            group.start_soon(anyio.to_thread.run_sync, node.supervisor.stop, "stack-a-worker")
            await until(lambda: node.supervisor.states()["stack-a-worker"].state == "stopping")
            os.kill(worker, signal.SIGKILL)

    status, ended, log, running, shown = (operator.does(line, run_id=run_id) for line in look)
    operator.follows(up)
    await until(lambda: status_of(node, run_id) == "succeeded", TAKEOVER_SECONDS)
    said = operator.follows(after, run_id=run_id)

    assert (status.returncode, "stack-a-worker" in status.stdout) == (1, True)
    assert "stopped: stack-a-worker (terminated by SIGKILL)" in ended.stdout
    assert log.stderr == ""
    assert run_id in running.stdout
    assert "running" in shown.stdout
    assert "1 times" in said


async def test_worker_lost_whose_process_hangs(node: NodeUnderTest, operator: Operator) -> None:
    look, _, _, replace, after = blocks("worker-lost")
    with silent_gateway(node):
        [run_id] = created(node)
        await until(lambda: asked(node, run_id))
        os.kill(node.pids()["stack-a-worker"], signal.SIGSTOP)

    status = operator.does(look[0])
    operator.follows(replace)
    await until(lambda: status_of(node, run_id) == "succeeded", TAKEOVER_SECONDS)
    said = operator.follows(after, run_id=run_id)

    assert (status.returncode, "NO" in status.stdout) == (1, True)
    assert "1 times" in said


async def test_run_stuck_because_nobody_takes_it(node: NodeUnderTest, operator: Operator) -> None:
    look, start, _ = blocks("run-stuck")
    node.supervisor.stop("stack-a-worker")
    [run_id] = created(node)

    status, _running, shown, log = (operator.does(line, run_id=run_id) for line in look)
    operator.follows(start, run_id=run_id)
    await until(lambda: status_of(node, run_id) == "succeeded")

    assert status.returncode == 1
    assert "stack-a-worker  stopped" in status.stdout
    assert "readyz since " in status.stdout
    assert "queued" in shown.stdout
    assert log.stderr == ""


async def test_run_stuck_while_the_gateway_is_away(node: NodeUnderTest, operator: Operator) -> None:
    look, start, _ = blocks("run-stuck")
    node.supervisor.stop("stack-b")
    [run_id] = created(node)
    await until(lambda: "step.model_retried" in operator.does(look[3], run_id=run_id).stdout)

    status, running, shown, _log = (operator.does(line, run_id=run_id) for line in look)
    operator.follows(start, run_id=run_id)
    await until(lambda: status_of(node, run_id) == "succeeded")

    assert (status.returncode, "stack-b         stopped" in status.stdout) == (1, True)
    assert run_id in running.stdout
    assert "started" in shown.stdout


async def test_run_stuck_in_a_call_that_hangs(node: NodeUnderTest, operator: Operator) -> None:
    look, _, (cancel, retry) = blocks("run-stuck")
    with silent_gateway(node):
        [run_id] = created(node)
        await until(lambda: asked(node, run_id))
        running = operator.does(look[1])
        operator.follows([cancel], run_id=run_id)
        await until(lambda: status_of(node, run_id) == "cancelled")
    again = operator.follows([retry], run_id=run_id)
    [retried] = {word.strip(".,;") for word in again.split() if word.startswith("run_")} - {run_id}
    await until(lambda: status_of(node, retried) == "succeeded")

    assert run_id in running.stdout


async def test_queue_backlog_of_a_tenant_that_is_full(node: NodeUnderTest, operator: Operator) -> None:
    look, (more_active, more_queued, heavier) = blocks("queue-backlog")
    small = node.command("tenant", "quota", TENANT, "--max-active-runs", "1", "--max-queued-runs", "2")
    assert small.returncode == 0, small.stderr
    with silent_gateway(node):
        [first] = created(node)
        await until(lambda: status_of(node, first) == "running")
        waiting = created(node, 2)
        with pytest.raises(ResourceExhausted):
            created(node)

        # The first line says what is not well, which here is the gateway.
        before = operator.follows(look[1:], tenant=TENANT)
        operator.follows([more_queued], tenant=TENANT)
        waiting += created(node)
        running_before = count(node, [first, *waiting], "running")
        operator.follows([more_active], tenant=TENANT)
        await until(lambda: count(node, [first, *waiting], "running") == 4)
        after = operator.follows([heavier, look[2]], tenant=TENANT)
    await until(lambda: count(node, [first, *waiting], "succeeded") == 4)

    assert first in before
    assert all(run_id in before for run_id in waiting[:2])
    assert "agentos_queue_depth_messages" in before
    assert 'agentos_run_refusals_total{code="concurrency_limited"}' in before
    assert running_before == 1
    assert all(number in after for number in ("200", "20,000", "3"))


async def test_gateway_configuration_that_can_not_be_used_or_is_wrong(
    node: NodeUnderTest, operator: Operator, tmp_path: Path
) -> None:
    look, (back, validate), forward = blocks("gateway-configuration")
    good = await stored(node, {"routing": {"aliases": {"good": "agentos-demo"}}})
    bad = await stored(node, {"backends": [{"name": "x", "base_url": "http://127.0.0.1:1/v1", "api_key": "env:GONE"}]})
    await until(lambda: "gateway.configuration_refused" in node.command("logs", "stack-b", "-n", "1000").stdout)

    shown, listed, checked, log = (operator.does(line) for line in look)
    before = operator.does(validate)
    operator.follows([back, validate], version=str(good))
    file = tmp_path / "new.json"
    file.write_text('{"routing": {"aliases": {"better": "agentos-demo"}}}')
    said = operator.follows(forward, file=str(file))

    assert f"because it can't use version {bad}" in shown.stderr
    assert str(good) in listed.stdout
    assert (checked.returncode, "GONE" in checked.stderr) == (1, True)
    assert "GONE" in log.stdout
    assert (before.returncode, "newest configuration" in before.stderr) == (1, True)
    assert "+ $.routing.aliases.better" in said
    assert "in force" in said


async def test_tenant_offboarding_hands_over_what_there_is_and_leaves_nothing(
    node: NodeUnderTest, operator: Operator
) -> None:
    look, (disable, kill, export, verify), delete, after = blocks("tenant-offboarding")
    tenant = "tnt_leaver"
    made = node.command("tenant", "create", tenant, "--admin-key", "--sample-agent")
    assert made.returncode == 0, made.stderr
    done = node.command("run", "agt_demo", QUESTION, "--tenant", tenant)
    assert done.returncode == 0, done.stderr

    looked = operator.follows(look, tenant=tenant)
    early = operator.does(delete[0], tenant=tenant)
    operator.follows([disable, kill], tenant=tenant)
    file = operator.does(export, tenant=tenant).stdout.strip()
    checked = operator.follows([verify], file=file)
    said = operator.follows(delete, tenant=tenant)
    again = operator.follows(delete, tenant=tenant)
    listed = operator.follows(after)

    assert "succeeded" in looked
    assert (early.returncode, "disable it first" in early.stderr) == (1, True)
    assert "every row is as it was written" in checked
    assert f"{tenant} is deleted" in said
    assert "0 rows removed" in again
    assert tenant not in listed
    assert TENANT in listed
    anew = node.command("tenant", "create", tenant)
    assert (anew.returncode, "not used again" in anew.stderr) == (1, True)


async def test_privacy_request_holds_hands_over_and_erases(node: NodeUnderTest, operator: Operator) -> None:
    look, hold, (export, verify), erase, release = blocks("privacy-request")
    tenant, subject = "tnt_private", "usr_ann"
    for made in (
        node.command("tenant", "create", tenant, "--sample-agent"),
        node.command("key", "issue", "--tenant", tenant, "--principal", subject, "--role", "viewer"),
    ):
        assert made.returncode == 0, made.stderr
    who = {"tenant": tenant, "subject": subject}

    looked = operator.follows(look, **who)
    placed = operator.follows(hold, **who, reason="case 17/26")
    held = operator.does(erase[2], **who)
    hold_id = next(word for word in placed.split() if word.startswith("hld_"))
    released = operator.follows(release, tenant=tenant, hold=hold_id)
    file = operator.does(export, **who).stdout.strip()
    checked = operator.follows([verify], file=file)
    erased = operator.follows(erase, **who)
    after = operator.follows(look, **who)

    assert "TOMBSTONE" in looked
    assert (held.returncode, "is held" in held.stderr) == (1, True)
    assert "is released" in released
    assert "every row is as it was written" in checked
    assert f"{subject} is erased" in erased
    assert "1 API keys removed" in erased
    assert subject not in after
    assert "erased:" in after


async def test_budgets_and_kills_by_command(node: NodeUnderTest, operator: Operator) -> None:
    """Not a runbook of its own: what several of them use."""
    with silent_gateway(node):
        [run_id] = created(node)
        await until(lambda: asked(node, run_id))
        killed = node.command("runs", "kill", run_id, "--tenant", TENANT, "--reason", "wild")
        status = status_of(node, run_id)
    made = node.command("budget", "set", TENANT, "each-key", "--limit", "900", "--scope", "key", "--mode", "soft")
    listed = operator.follows([f"./agentos budget list {TENANT}"])
    shown = node.command("budget", "show", TENANT, "each-key", "--scope-id", "svc_x", "--json")
    removed = node.command("budget", "remove", TENANT, "each-key")
    granted = node.command("tenant", "entitle", TENANT, "max_active_runs=55", "--json")
    used = node.command("usage", TENANT, "--by-agent")

    assert (killed.returncode, killed.stdout) == (0, f"{run_id} is cancelled\n")
    assert status == "cancelled", "whoever held it"
    assert (made.returncode, removed.returncode, used.returncode) == (0, 0, 0)
    assert "tokens_per_day" in listed
    assert "key (each)" in listed
    assert json.loads(shown.stdout)["window"]["left"] == 900
    assert json.loads(granted.stdout)["entitlements"]["max_active_runs"] == 55


async def test_a_slip_is_told_what_there_is_and_what_to_do(node: NodeUnderTest) -> None:
    [run_id] = created(node)
    await until(lambda: status_of(node, run_id) == "succeeded")
    steps = json.loads(node.command("runs", "show", run_id, "--json").stdout)["steps"]
    absent, elsewhere = "run_" + "0" * 32, "of tnt_demo; another tenant's: --tenant tnt_<name>"
    slips = {
        ("runs", "fork", run_id, "--from-step", "9"): f"it has {len(steps)} steps; 0 (begins anew) to {len(steps)} can",
        (
            "runs",
            "retry",
            run_id,
        ): "is succeeded; only a failed or cancelled run can be retried: to go on from one of its",
        ("runs", "resolve", run_id, "--step", "1", "--retry"): "waits for no operator: there is nothing to decide",
        ("runs", "cancel", absent): elsewhere,
        ("runs", "kill", absent, "--tenant", TENANT): elsewhere,
        ("replay", absent): elsewhere,
    }

    said = {slip: node.command(*slip) for slip in slips}
    late = [node.command("runs", *line) for line in (("cancel", run_id), ("kill", run_id, "--tenant", TENANT))]

    for slip, says in slips.items():
        assert (said[slip].returncode, says in said[slip].stderr) == (1, True), said[slip].stderr
    for one in late:
        assert (one.returncode, one.stdout) == (0, f"{run_id} is succeeded\n")
        assert "It had ended before; nothing was changed." in one.stderr


async def test_audit_mismatch_after_somebody_edited_an_entry(
    node: NodeUnderTest, operator: Operator, tmp_path: Path
) -> None:
    (verify, one, log), (export, offline) = blocks("audit-mismatch")
    created(node)
    # The admin service signs by itself, once a minute; what was noted since then is signed now.
    await until((node.node.audit / "heads.jsonl").exists, 90)
    assert node.command("audit", "sign").returncode == 0
    before = operator.does(verify)
    passwords = credentials.database_passwords(node.node)
    dsn = credentials.embedded_url("postgres", passwords.superuser, node.ports["postgres"])
    number = await edited(dsn)

    after, told, logged = (operator.does(line, tenant=TENANT) for line in (verify, one, log))
    kept = operator.does(export, tenant=TENANT, export=str(tmp_path / "audit.jsonl"))
    elsewhere = operator.does(offline, export=str(tmp_path / "audit.jsonl"))

    assert (before.returncode, after.returncode) == (0, 2)
    assert f"number {number}: the entry, its place or the hash before it is not what was noted" in after.stderr
    assert json.loads(told.stdout)["tenants"][0]["bad"] == number
    assert (logged.returncode, kept.returncode, elsewhere.returncode) == (0, 0, 2)
    assert f"number {number}:" in elsewhere.stderr


async def edited(dsn: str) -> int:
    """Somebody with the database's superuser gives a run to another principal."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "agentos"})
    try:
        number: int = await connection.fetchval(
            "SELECT c.seq FROM audit_chain c JOIN audit_log a ON a.tenant_id = c.tenant_id AND a.id = c.entry "
            "WHERE c.tenant_id = $1 AND a.action = 'run.create' ORDER BY c.seq LIMIT 1",
            TENANT,
        )
        await connection.execute(
            "UPDATE audit_log a SET principal = 'usr_else' FROM audit_chain c "
            "WHERE c.tenant_id = $1 AND c.seq = $2 AND a.tenant_id = c.tenant_id AND a.id = c.entry",
            TENANT,
            number,
        )
    finally:
        await connection.close()
    return number


async def stored(node: NodeUnderTest, document: Json) -> int:
    """Past the checks of the command, as a machine that lacks a secret has it."""
    async with open_gateway_configurations(node.node) as store:
        made = await store.put(OPERATOR, Draft(document=document, digest="d"), if_match=None, key=uuid.uuid4().hex)
    return made.version
