"""A running node, used the way its operator and its integrators use it."""

import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from deploy.action import exclusive
from deploy.report import Report
from tests.support.node import NodeUnderTest

QUESTION = "What is 17.5 % of 2340, and how many words are in: to be or not to be?"


@pytest.fixture(scope="module")
def first_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeUnderTest, Report]]:
    node = NodeUnderTest(tmp_path_factory.mktemp("node") / "home with a blank")
    try:
        yield node, node.up()
    finally:
        gone = node.agentos("nuke", "--hard", "--yes-really")
        assert gone.returncode == 0, gone.stderr


@pytest.fixture(scope="module")
def node(first_up: tuple[NodeUnderTest, Report]) -> NodeUnderTest:
    return first_up[0]


class TestUp:
    def test_it_ends_with_everything_healthy_and_every_check_passed(
        self, first_up: tuple[NodeUnderTest, Report]
    ) -> None:
        _, report = first_up

        assert report.ok
        assert [phase.name for phase in report.phases] == ["preflight", "boot", "migrate", "seed", "wire", "validate"]
        assert {line.name: line.healthy for line in report.services} == {
            "postgres": True,
            "stack-b": True,
            "stack-a": True,
            "stack-a-worker": True,
            "admin": True,
        }
        assert [check for check in report.checks if not check.ok] == []

    def test_the_report_says_what_was_seeded_and_where_the_credentials_are(
        self, first_up: tuple[NodeUnderTest, Report]
    ) -> None:
        node, report = first_up

        assert report.seeded is not None
        assert (report.seeded.tenant_id, report.seeded.agent_id) == ("tnt_demo", "agt_demo")
        assert str(node.node.secret("tokens.json")) in report.credentials
        assert report.quotas
        assert any("curl" in command for command in report.next_commands)

    def test_secrets_are_readable_by_their_owner_only_and_in_no_report(self, node: NodeUnderTest) -> None:
        secrets = list(node.node.secrets.iterdir())
        assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
        assert stat.S_IMODE(node.node.secrets.stat().st_mode) == 0o700
        assert stat.S_IMODE(node.node.env_file.stat().st_mode) == 0o600

        values = [key.api_key for key in node.tokens().keys.values()]
        values += msgspec.json.decode(node.node.secret("postgres.json").read_bytes(), type=dict[str, str]).values()
        for report in node.node.reports.iterdir():
            assert not any(value in report.read_text() for value in values), report

    def test_a_second_up_changes_nothing_and_says_so(self, node: NodeUnderTest) -> None:
        before = (node.pids(), node.tokens(), node.node.env_file.read_bytes())

        done = node.agentos("up")

        assert done.returncode == 0, done.stderr
        assert (node.pids(), node.tokens(), node.node.env_file.read_bytes()) == before
        assert "nothing was changed" in done.stdout
        assert [phase["changed"] for phase in node.report("up")["phases"]] == [False] * 6

    def test_the_milestones_are_counted_as_they_happen(self, node: NodeUnderTest) -> None:
        done = node.agentos("up")

        assert re.search(r"services healthy 1/5 .*services healthy 5/5", done.stderr, re.DOTALL)

    def test_two_at_once_are_refused(self, node: NodeUnderTest) -> None:
        with exclusive(node.node):
            done = node.agentos("up")

        assert done.returncode == 1
        assert "is changing the node" in done.stderr

    def test_an_occupied_port_is_named_with_its_holder_and_the_remedy(
        self, node: NodeUnderTest, tmp_path: Path
    ) -> None:
        other = NodeUnderTest(tmp_path / "other")
        other.ports["stack-a"] = node.ports["stack-a"]
        flags = [word for name, port in other.ports.items() for word in (f"--port-{name}", str(port))]

        try:
            done = other.agentos("up", *flags)

            assert done.returncode == 1
            assert f"127.0.0.1:{node.ports['stack-a']}, which is held by python" in done.stderr
            assert "./agentos up --port-stack-a " in done.stderr
            assert not other.node.env_file.exists(), "a port that did not work must not be remembered"
        finally:
            other.agentos("nuke", "--hard", "--yes-really")

    def test_prod_runs_on_an_external_database_by_reference_and_seeds_nothing(
        self, node: NodeUnderTest, tmp_path: Path
    ) -> None:
        prod = NodeUnderTest(tmp_path / "prod")
        prod.node.create()
        # The first node's database stands in for a managed one.
        references = {
            "AGENTOS_DATABASE_URL": node.node.secret("database_url"),
            "AGENTOS_DATABASE_OWNER_URL": node.node.secret("database_owner_url"),
            "AGENTOS_DATABASE_CONTROL_URL": node.node.secret("database_control_url"),
        }
        prod.node.env_file.write_text("".join(f"{key}=file:{path}\n" for key, path in references.items()))
        try:
            report = prod.up("--mode", "prod")

            assert [line.name for line in report.services] == ["stack-b", "stack-a", "stack-a-worker", "admin"]
            assert report.seeded is None
            assert not prod.node.secret("tokens.json").exists()
            assert [check.name for check in report.checks if check.skipped] == ["sample run"]
            assert prod.agentos("up", "--mode", "demo").returncode == 2, (
                "a prod node does not turn into a demo by a flag"
            )
        finally:
            assert prod.agentos("nuke", "--hard", "--yes-really").returncode == 0
        assert node.agentos("validate").returncode == 0, "the database was not ours to take away"


class TestRuns:
    def test_a_run_calls_tools_and_a_model_and_its_log_is_the_same_from_every_event_on(
        self, node: NodeUnderTest
    ) -> None:
        headers = {"Authorization": f"Bearer {node.app_key()}", "Idempotency-Key": "curl-like"}
        with httpx.Client(base_url=node.stack_a, headers=headers, timeout=60, trust_env=False) as http:
            created = http.post("/v1/agents/agt_demo/runs", json={"input": QUESTION})
            assert created.status_code == 202
            whole = http.get(created.json()["events_url"]).text

            frames = [frame for frame in whole.split("\n\n") if frame and not frame.startswith(":")]
            for number, frame in enumerate(frames):
                cursor = frame.split("\n", 1)[0].removeprefix("id: ")
                rest = http.get(created.json()["events_url"], headers={"Last-Event-ID": cursor}).text
                assert [part for part in rest.split("\n\n") if part and not part.startswith(":")] == frames[
                    number + 1 :
                ]

        types = re.findall(r"^event: (.+)$", whole, re.MULTILINE)
        assert types[0] == "run.created"
        assert types[-1] == "run.completed"
        assert {"tool.requested", "tool.completed", "model.requested", "model.completed"} <= set(types)
        assert types.count("tool.completed") == 2

    def test_agentos_run_shows_two_tool_calls_and_the_right_numbers(self, node: NodeUnderTest) -> None:
        done = node.agentos("run", "agt_demo", QUESTION)

        assert done.returncode == 0, done.stderr
        assert done.stdout.count("✓ calculator") == 1
        assert done.stdout.count("✓ text_stats") == 1
        answer = done.stdout.rpartition("\n\n")[0].rpartition("\n\n")[2]
        assert "409.5" in answer
        assert re.search(r"\b6\b", answer)
        assert re.search(r"\d+ model calls · 2 tool calls · \d+ \+ \d+ tokens", done.stdout)

    def test_for_machines_every_line_is_an_event_and_the_last_a_summary(self, node: NodeUnderTest) -> None:
        done = node.agentos("run", "agt_demo", "What is 2 + 2?", "--json")

        *events, summary = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert (summary["status"], summary["tool_calls"]) == ("succeeded", 1)
        assert "4" in str(summary["output"])

    def test_an_agent_that_does_not_exist_is_told_and_fails(self, node: NodeUnderTest) -> None:
        done = node.agentos("run", "agt_nobody", "hello")

        assert done.returncode == 1
        assert "not_found" in done.stderr


class TestTenants:
    def test_another_tenant_sees_nothing_of_the_first_one_s_runs(self, node: NodeUnderTest) -> None:
        created = node.agentos("tenant", "create", "tnt_other", "--admin-key")
        assert created.returncode == 0, created.stderr
        key = created.stdout.splitlines()[-1]
        with node.client() as ours, node.client(key) as theirs:
            run_id = ours.create_run("agt_demo", "What is 1 + 1?").run_id

            assert theirs.get(f"/v1/runs/{run_id}").status_code == 404
            assert theirs.get("/v1/runs").json()["items"] == []
            assert theirs.get("/v1/agents").json()["items"] == []

    def test_a_new_tenant_runs_the_sample_agent(self, node: NodeUnderTest) -> None:
        created = node.agentos("tenant", "create", "tnt_new", "--sample-agent")
        assert created.returncode == 0, created.stderr
        assert 'Next: ./agentos run agt_demo "What is 17.5 % of 2340?" --tenant tnt_new' in created.stderr

        done = node.agentos("run", "agt_demo", "What is 17.5 % of 2340?", "--tenant", "tnt_new")

        assert done.returncode == 0, done.stderr
        assert "409.5" in done.stdout

    def test_a_new_tenant_publishes_and_runs_an_agent_of_its_own(self, node: NodeUnderTest, tmp_path: Path) -> None:
        created = node.agentos("tenant", "create", "tnt_author", "--admin-key")
        assert "./agentos agent publish <spec.json> --tenant tnt_author" in created.stderr
        written = msgspec.json.decode(node.agentos("agent", "show", "agt_demo").stdout, type=dict[str, object])
        path = tmp_path / "own.json"
        path.write_bytes(msgspec.json.encode(written | {"id": "agt_own", "tools": ["calculator"]}))
        mine = ("--tenant", "tnt_author")

        published = node.agentos("agent", "publish", str(path), *mine)
        again = node.agentos("agent", "publish", "-", *mine, stdin=path.read_text())
        changed = node.agentos("agent", "publish", "-", *mine, stdin=path.read_text().replace("calculator", "clock"))

        assert published.stdout == "agt_own version 1 is published\n", published.stderr
        assert again.stdout == "agt_own version 1 was published already; nothing was changed\n"
        assert changed.stdout == "agt_own version 2 is published\n"
        [listed] = msgspec.json.decode(node.agentos("agent", "list", *mine, "--json").stdout)
        assert (listed["spec"]["id"], listed["version"], listed["spec"]["tools"]) == ("agt_own", 2, ["clock"])
        first = node.agentos("agent", "show", "agt_own", "--version", "1", *mine).stdout
        assert msgspec.json.decode(first)["tools"] == ["calculator"]
        done = node.agentos("run", "agt_own", "hello", *mine)
        assert done.returncode == 0, done.stderr
        assert "agt_own" not in node.agentos("agent", "list").stdout

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            (("agent", "publish", "-"), "standard input: the body is not valid JSON"),
            (("agent", "publish", "-", "--tenant", "tnt_nobody"), "standard input: "),
            (("agent", "show", "agt_nobody"), "there is no agent 'agt_nobody'"),
            (("agent", "list", "--tenant", "tnt_nobody"), "tnt_nobody"),
        ],
    )
    def test_an_agent_or_a_tenant_that_is_not_there_is_told(
        self, node: NodeUnderTest, line: tuple[str, ...], says: str
    ) -> None:
        done = node.agentos(*line)

        assert done.returncode in {1, 2}
        assert says in done.stderr

    def test_an_agent_is_not_published_for_a_tenant_that_does_not_exist(self, node: NodeUnderTest) -> None:
        sample = node.agentos("agent", "show", "agt_demo").stdout

        done = node.agentos("agent", "publish", "-", "--tenant", "tnt_nobody", stdin=sample)

        assert done.returncode == 1
        assert "tnt_nobody" in done.stderr

    def test_a_revoked_key_is_refused_within_five_seconds(self, node: NodeUnderTest) -> None:
        issued = msgspec.json.decode(node.agentos("key", "issue", "--json").stdout)
        assert node.get(f"{node.stack_a}/v1/runs", issued["api_key"]).status_code == 200

        assert node.agentos("key", "revoke", issued["key_id"]).returncode == 0

        # The five seconds are the promise itself.
        promised = time.monotonic() + 5
        status = 200
        while status != 401 and time.monotonic() < promised:
            status = node.get(f"{node.stack_a}/v1/runs", issued["api_key"]).status_code
        assert status == 401

    def test_a_tenants_policy_is_set_shown_and_holds_within_five_seconds(
        self, node: NodeUnderTest, tmp_path: Path
    ) -> None:
        policy = '{"rules": [{"id": "no-herons", "effect": "deny", "keywords": ["blue heron"]}]}'
        path = tmp_path / "policy.json"
        path.write_text(policy)
        token = node.agentos("token", "--audience", "stack-b").stdout.strip()

        def asked() -> tuple[int, str]:
            body = {"model": "agentos-demo", "messages": [{"role": "user", "content": "a Blue Heron"}]}
            headers = {"authorization": f"Bearer {token}"}
            answer = httpx.post(f"{node.stack_b}/v1/chat/completions", json=body, headers=headers, timeout=30)
            return answer.status_code, answer.json().get("error", {}).get("code", "")

        assert asked() == (200, "")
        for change, expected in ((("--file", str(path)), (403, "policy_blocked")), (("--clear",), (200, ""))):
            done = node.agentos("tenant", "policy", "tnt_demo", *change)
            assert done.returncode == 0, done.stderr
            # The five seconds are the promise itself.
            promised = time.monotonic() + 5
            found = asked()
            while found != expected and time.monotonic() < promised:
                found = asked()
            assert found == expected
            shown = msgspec.json.decode(node.agentos("tenant", "policy", "tnt_demo", "--json").stdout)
            assert [rule["id"] for rule in shown["rules"]] == (["no-herons"] if "--file" in change else [])

    def test_keys_are_listed_without_their_secrets(self, node: NodeUnderTest) -> None:
        done = node.agentos("key", "list")

        assert "seeded: tenant_admin" in done.stdout
        assert not any(key.api_key.rpartition("_")[2] in done.stdout for key in node.tokens().keys.values())

    def test_a_minted_token_opens_its_own_audience_only(self, node: NodeUnderTest) -> None:
        for_a = node.agentos("token").stdout.strip()
        for_b = node.agentos("token", "--audience", "stack-b").stdout.strip()

        assert node.get(f"{node.stack_a}/v1/agents", for_a).status_code == 200
        assert node.get(f"{node.stack_b}/v1/models", for_b).status_code == 200
        assert node.get(f"{node.stack_a}/v1/agents", for_b).status_code == 401
        assert node.get(f"{node.stack_b}/v1/models", for_a).status_code == 401

    def test_tenants_are_listed_with_their_quota(self, node: NodeUnderTest) -> None:
        tenants = {
            tenant["id"]: tenant for tenant in msgspec.json.decode(node.agentos("tenant", "list", "--json").stdout)
        }

        assert tenants["tnt_demo"]["entitlements"]["tokens_per_day"] == 1_000_000
        assert tenants["tnt_validate"]["status"] == "disabled", "the isolation check's tenant is off between checks"


class TestLooking:
    def test_validate_passes_on_a_healthy_node(self, node: NodeUnderTest) -> None:
        done = node.agentos("validate")

        assert done.returncode == 0, done.stderr
        report = node.report("validate")
        assert report["ok"]
        names = [check["name"] for check in report["checks"] if check["ok"]]
        assert "another tenant sees nothing of it" in names
        assert "metrics moved" in names
        assert "the event stream resumes anywhere" in names

    def test_status_counts_the_healthy_services(self, node: NodeUnderTest) -> None:
        done = node.agentos("status")

        assert done.returncode == 0
        assert "services healthy 5/5" in done.stderr
        assert len(done.stdout.splitlines()) == 6

    def test_logs_follow_what_is_added(self, node: NodeUnderTest) -> None:
        path = node.node.log_of("stack-a")
        command = [sys.executable, "-m", "deploy.cli.main", "logs", "stack-a", "-f", "-n", "1"]
        with subprocess.Popen(command, env=node.environ, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            try:
                if path.stat().st_size:
                    following.stdout.readline()
                with path.open("a") as log:
                    log.write("a line of the test\n")

                assert following.stdout.readline() == "a line of the test\n"
            finally:
                following.kill()

    def test_settings_say_where_they_came_from(self, node: NodeUnderTest) -> None:
        settings = msgspec.json.decode(node.agentos("config", "explain", "--json").stdout)["settings"]

        found = {setting["key"]: setting for setting in settings}["AGENTOS_STACK_A_PORT"]
        assert found["value"] == str(node.ports["stack-a"])
        assert found["origin"].startswith(".agentos.env:")
