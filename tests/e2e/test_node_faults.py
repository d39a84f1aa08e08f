"""A node whose parts die: what heals by itself, what `validate` says, what `up` repairs."""

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import httpx
import psutil
import pytest

from adapters.postgres.bootstrap import ADMIN
from deploy import credentials
from deploy.catalogue import catalogue
from deploy.client import SseEvent
from deploy.config import parse_file, resolve
from deploy.health import probe
from deploy.processes import processes_of
from tests.support.node import NodeUnderTest, running_node
from tests.support.postgres import execute, fetch

# A lease lasts 25 s and orphans are looked for every 2; then the run itself.
TAKEOVER_SECONDS = 60
FAST_SECONDS = 5


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    with running_node(tmp_path_factory.mktemp("faulty") / "home") as node:
        yield node


async def until(true: Callable[[], bool], seconds: float) -> None:
    """Poll something outside of our process, bounded."""
    with anyio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - another process sets no event of ours
            await anyio.sleep(0.1)


def healthy(node: NodeUnderTest, name: str) -> bool:
    config = resolve({}, parse_file(node.node.env_file)).config
    service = next(service for service in catalogue(node.node, config, {}) if service.name == name)
    return probe(service).ok


class TestStoppedParts:
    @pytest.mark.parametrize("part", ["stack-b", "stack-a-worker", "postgres", "stack-a"])
    def test_validate_names_the_part_and_the_next_command_and_up_repairs_it(
        self, node: NodeUnderTest, part: str
    ) -> None:
        node.supervisor.stop(part)

        # Twenty seconds at most: a monitor waits for it.
        failed = node.agentos("validate", timeout=20)

        assert failed.returncode == 1
        assert f"{part}: {part} is ready: " in failed.stderr
        assert f"Next: ./agentos up   (starts {part} again" in failed.stderr
        checks = {check["name"]: check for check in node.report("validate")["checks"]}
        assert checks[f"{part} is ready"]["ok"] is False
        assert checks["smoke tests"]["skipped"] is True
        report = node.up()
        assert any(
            f"started {part}" in phase.summary or "started PostgreSQL" in phase.summary for phase in report.phases
        )


def asked(node: NodeUnderTest) -> dict[str, httpx.Response]:
    """What each surface answers to somebody who may ask it."""
    key, admin = node.app_key(), node.tokens().keys["tenant_admin"].api_key
    mine = {"Authorization": f"Bearer {key}", "Idempotency-Key": uuid.uuid4().hex}
    talk = {"model": "agentos-demo", "messages": [{"role": "user", "content": "hello"}]}
    new = {"input": "What is 3 + 4?"}
    with httpx.Client(timeout=FAST_SECONDS, trust_env=False) as client:
        return {
            "stack-a, a run": client.post(f"{node.stack_a}/v1/agents/agt_demo/runs", headers=mine, json=new),
            "stack-a, a list": client.get(f"{node.stack_a}/v1/runs", headers=mine),
            "stack-b": client.post(f"{node.stack_b}/v1/chat/completions", headers=mine, json=talk),
            "admin": client.get(f"{node.admin}/v1/admin/keys", headers={"Authorization": f"Bearer {admin}"}),
        }


@pytest.mark.anyio
async def test_a_stopped_database_is_refused_at_once_with_the_time_to_come_back_and_all_heal_by_themselves(
    node: NodeUnderTest,
) -> None:
    before = node.pids()
    assert all(answer.is_success for answer in asked(node).values())
    node.supervisor.stop("postgres")
    # For a while a gateway knows what it may let through.
    await until(lambda: not any(answer.is_success for answer in asked(node).values()), 20)
    refused = asked(node)
    node.supervisor.start("postgres")
    await until(lambda: all(answer.is_success for answer in asked(node).values()), 30)
    done = node.command("run", "agt_demo", "What is 3 + 4?")

    for surface, answer in refused.items():
        error = answer.json()["error"]
        assert (surface, answer.status_code, error["code"], error["retryable"]) == (surface, 503, "unavailable", True)
        assert (surface, answer.headers.get("retry-after")) == (surface, "2")
    assert done.returncode == 0, done.stderr
    assert {name: pid for name, pid in node.pids().items() if before[name] != pid}.keys() == {"postgres"}


@pytest.mark.anyio
class TestKilledParts:
    async def test_a_killed_service_is_started_again_by_its_supervisor(self, node: NodeUnderTest) -> None:
        before = node.pids()["stack-b"]

        os.kill(before, signal.SIGKILL)

        await until(lambda: node.pids()["stack-b"] not in {0, before} and healthy(node, "stack-b"), 30)

    async def test_a_killed_database_comes_back_and_the_runs_go_on(self, node: NodeUnderTest) -> None:
        before = node.pids()["postgres"]

        os.kill(before, signal.SIGKILL)

        await until(lambda: all(healthy(node, name) for name in node.pids()), 60)
        assert node.command("run", "agt_demo", "What is 3 + 4?").returncode == 0

    async def test_a_run_survives_the_sigkill_of_its_worker_and_repeats_no_step(self, node: NodeUnderTest) -> None:
        gateway = psutil.Process(node.pids()["stack-b"])
        with node.client() as client:
            # A gateway that does not answer keeps the run in the middle of its first model call.
            gateway.suspend()
            try:
                accepted = client.create_run("agt_demo", "What is 6 * 7?")
                await until(lambda: _types(node, accepted.run_id)[-1:] == ["model.requested"], 20)
                worker = node.pids()["stack-a-worker"]
                os.kill(worker, signal.SIGKILL)
                await until(lambda: node.pids()["stack-a-worker"] not in {0, worker}, 20)
            finally:
                gateway.resume()
            await until(lambda: client.run(accepted.run_id)["status"] == "succeeded", TAKEOVER_SECONDS)
            events = list(client.stream(accepted.events_url))
            run = client.run(accepted.run_id)

        assert run["recoveries"] >= 1
        assert [event.data["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert [event.type for event in events if event.type.startswith("run.")][-1] == "run.completed"
        assert _completed_twice(events) == []

    async def test_up_takes_over_what_a_killed_supervisor_left_behind(self, node: NodeUnderTest) -> None:
        tokens = node.tokens()
        supervisor = int(node.node.supervisor_pid.read_text())
        os.kill(supervisor, signal.SIGKILL)
        await until(lambda: not node.supervisor.alive(), 10)

        report = node.up()

        assert "earlier supervisor left behind" in report.phases[1].summary
        assert node.tokens() == tokens
        # The supervisor, four services, and the database's own processes; none of the old ones beside them.
        assert {process.pid for process in processes_of(node.node)} >= set(node.pids().values())
        assert len([process for process in processes_of(node.node) if "deploy.roots" in str(process.cmdline())]) == 4


class TestSpentBudget:
    @pytest.mark.parametrize(
        ("settled", "held", "says"), [(999_900, 0, "is spent (budget_exceeded)"), (0, 999_900, "(budget_in_flight)")]
    )
    def test_validate_names_the_budget_and_no_service(
        self, node: NodeUnderTest, settled: int, held: int, says: str
    ) -> None:
        with budget_of_today(node, settled=settled, held=held):
            failed = node.agentos("validate", timeout=20)

        assert failed.returncode == 1
        assert "budget: sample run" in failed.stderr
        assert says in failed.stderr
        assert "999,900" in failed.stderr
        assert "Next: ./agentos validate   (" in failed.stderr
        assert "agentos logs" not in failed.stderr
        failures = [check for check in node.report("validate")["checks"] if not check["ok"]]
        assert [(check["part"], check["log_tail"]) for check in failures] == [("budget", [])]


class TestRedeploy:
    def test_services_are_new_and_the_data_is_old(self, node: NodeUnderTest) -> None:
        with node.client() as client:
            run_id = client.create_run("agt_demo", "What is 1 + 2?").run_id
        before = node.pids()

        done = node.agentos("redeploy")

        assert done.returncode == 0, done.stderr
        after = node.pids()
        assert after["postgres"] == before["postgres"]
        assert all(after[name] != before[name] for name in ("stack-a", "stack-a-worker", "stack-b"))
        with node.client() as client:
            assert client.run(run_id)["run_id"] == run_id
        assert node.report("redeploy")["ok"]

    def test_a_changed_setting_restarts_what_it_concerns_only(self, node: NodeUnderTest) -> None:
        before = node.pids()

        text = node.node.env_file.read_text().replace("#AGENTOS_WORKER_CONCURRENCY=32", "AGENTOS_WORKER_CONCURRENCY=2")
        node.node.env_file.write_text(text)
        report = node.up()

        after = node.pids()
        assert [name for name in after if after[name] != before[name]] == ["stack-a-worker"]
        assert "new settings for stack-a-worker" in report.phases[1].summary


@contextmanager
def budget_of_today(node: NodeUnderTest, *, settled: int, held: int) -> Iterator[None]:
    """The demo tenant's budget as others would have left it, for as long as the block runs."""
    passwords = credentials.database_passwords(node.node)
    admin = credentials.embedded_url(ADMIN, passwords.admin, node.ports["postgres"])

    key = "tenant_id, account, window_start"
    row = "('tnt_demo', 'tokens_per_day', date_trunc('day', now(), 'UTC'))"

    async def put() -> tuple[int, int]:
        """What was added, once nobody holds anything: a gateway's chunks go back by themselves."""
        await execute(
            admin,
            f"INSERT INTO agentos.budget_windows ({key}, unit, settled, held) "
            f"VALUES {row[:-1]}, 'tokens', 0, 0) ON CONFLICT DO NOTHING",
        )
        look = f"SELECT settled, held FROM budget_windows WHERE ({key}) = {row}"
        with anyio.fail_after(10):
            while (now := (await fetch(admin, look))[0])["held"]:  # noqa: ASYNC110 - a database sets no event of ours
                await anyio.sleep(0.1)
        added = (settled - now["settled"], held - now["held"])
        await add(*added)
        return added

    async def add(more_settled: int, more_held: int) -> None:
        change = f"settled = settled + {more_settled}, held = held + {more_held}"
        await execute(admin, f"UPDATE agentos.budget_windows SET {change} WHERE ({key}) = {row}")

    added = asyncio.run(put())
    try:
        yield
    finally:
        # Not what was there before: holds have come and gone since.
        asyncio.run(add(-added[0], -added[1]))


def _types(node: NodeUnderTest, run_id: str) -> list[str]:
    """Types of the events a run has by now; the stream is left at once, it would go on."""
    found: list[str] = []
    with node.client() as client:
        last = client.run(run_id)
        for event in client.stream(last["events_url"]):
            found.append(event.type)
            if event.type == "model.requested":
                break
    return found


def _completed_twice(events: list[SseEvent]) -> list[int]:
    steps = [event.body["step"] for event in events if event.type == "step.completed"]
    return sorted({step for step in steps if steps.count(step) > 1})
