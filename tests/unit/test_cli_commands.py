"""The command line's manners: help that teaches, exit codes, data apart from talk, nothing by accident."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from deploy.cli.main import parser
from deploy.cli.replay_command import told
from deploy.cli.runs_command import decision_of, facts_of, next_of
from deploy.cli.test_command import Options, steps
from deploy.node import Node
from deploy.roles import ROLES, scopes_of
from ports.context import SCOPES
from ports.errors import InvalidArgument
from stack_a.runs.replay import Decision, Divergence, Replayed
from tests.support.cli import agentos
from tests.support.named_tests import ROOT

COMMANDS = (
    "up", "status", "logs", "validate", "redeploy", "nuke", "config", "run", "runs", "replay", "tenant", "agent", "key",
    "token", "gateway", "requests", "usage", "audit", "test",
)  # fmt: skip


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AGENTOS_HOME": str(tmp_path / "home")}


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_help(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([command, "--help"])

        assert ended.value.code == 0
        assert "usage: agentos " in capsys.readouterr().out

    def test_the_help_shows_the_first_steps(self) -> None:
        text = parser().format_help()

        assert './agentos run agt_demo "' in text
        assert "exit codes: 0 fine" in text

    @pytest.mark.parametrize("line", [[], ["fly"], ["up", "--port-stack-a"], ["run", "agt_demo"], ["nuke", "--har"]])
    def test_a_wrong_command_line_is_usage(self, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(line)

        assert ended.value.code == 2
        assert "usage: agentos" in capsys.readouterr().err


class TestLoading:
    def test_a_command_loads_no_other_s_and_nothing_that_only_others_need(self, environ: dict[str, str]) -> None:
        program = "import sys; from deploy.cli import main; main.parser(sys.argv[1]); print(*sys.modules)"

        loaded = subprocess.run(
            [sys.executable, "-c", program, "status"],
            env={**os.environ, **environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.split()

        assert [name for name in loaded if name.endswith("_command")] == ["deploy.cli.status_command"]
        assert not {"adapters.postgres.engine", "litellm"} & set(loaded)


class TestWithoutANode:
    def test_status_says_how_to_start_one_and_exits_3(self, environ: dict[str, str]) -> None:
        said = agentos("status", environ=environ)

        assert said.code == 3
        assert "./agentos up" in said.err
        assert said.out == ""

    def test_status_for_machines_is_one_document(self, environ: dict[str, str]) -> None:
        said = agentos("status", "--json", environ=environ)

        found = msgspec.json.decode(said.out)
        assert (said.code, found["supervised"], found["total"]) == (3, False, 5)

    @pytest.mark.parametrize(
        "line",
        [
            ("tenant", "list"),
            ("agent", "list"),
            ("key", "list"),
            ("replay", "run_x"),
            ("token",),
            ("token", "rotate-key"),
            ("redeploy",),
            ("logs", "stack-a"),
        ],
    )
    def test_what_needs_a_node_exits_3_and_says_how_to_start_one(
        self, environ: dict[str, str], line: tuple[str, ...]
    ) -> None:
        said = agentos(*line, environ=environ)

        assert said.code == 3
        assert "./agentos up" in said.err

    def test_a_run_without_a_tenant_asks_for_one(self, environ: dict[str, str]) -> None:
        said = agentos("run", "agt_demo", "hello", environ=environ)

        assert said.code == 2
        assert "--tenant" in said.err

    def test_an_unknown_service_is_usage_and_the_known_ones_are_listed(self, environ: dict[str, str]) -> None:
        said = agentos("logs", "stack-c", environ=environ)

        assert said.code == 2
        assert "stack-a-worker" in said.err

    def test_only_what_is_given_of_a_quota_is_changed(self) -> None:
        parsed = parser().parse_args(["tenant", "quota", "tnt_a", "--max-active-runs", "7", "--models", "m, n"])

        options = parsed.options(parsed)

        assert (options.tenant, options.quota, options.models) == ("tnt_a", {"max_active_runs": 7}, ("m", "n"))

    def test_names_that_a_tenant_is_kept_to_are_told_with_commas(self) -> None:
        parsed = parser().parse_args(
            ["tenant", "quota", "tnt_a", "--tiers", "small, large", "--regions", "eu", "--egress-hosts", "*.a.b"]
        )

        quota = {"tiers": ("small", "large"), "regions": ("eu",), "egress_hosts": ("*.a.b",)}
        assert parsed.options(parsed).quota == quota

    def test_every_problem_of_a_policy_is_told_and_nothing_is_looked_for(
        self, environ: dict[str, str], tmp_path: Path
    ) -> None:
        path = tmp_path / "policy.json"
        path.write_text(
            '{"rules": [{"id": "a", "effect": "deny", "patterns": ["("]}, {"id": "B"}, {"id": "c", "efect": 1}]}'
        )

        said = agentos("tenant", "policy", "tnt_a", "--file", str(path), environ=environ)

        assert said.code == 2
        for problem in ("rule 'a': '(' is no pattern", "rules[1]: ", "rules[2]: ", "nothing was changed"):
            assert problem in said.err

    def test_a_name_that_is_no_tenant_is_refused_before_anything_else(self, environ: dict[str, str]) -> None:
        assert agentos("tenant", "create", "Acme Inc", environ=environ).code == 2

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            (("tenant", "create", "tnt_x", "--tokens-per-day", "-5"), "--tokens-per-day must be 0 to "),
            (("tenant", "create", "tnt_x", "--tokens-per-day", str(2**63)), "--tokens-per-day must be 0 to "),
            (("tenant", "create", "tnt_x", "--models", " , "), "--models names no model"),
            (("tenant", "create", "tnt_x", "--models", "other", "--sample-agent"), "--models leaves out"),
            (("tenant", "quota", "tnt_x", "--backends", ","), "--backends names no backend"),
            (("tenant", "policy", "tnt_x", "--file", "/no/such.json"), "/no/such.json: No such file"),
            (("tenant", "policy", "Acme", "--clear"), "'Acme' can't name a tenant"),
            (("key", "issue", "--principal", "bad one"), "'bad one' can't name a principal"),
            (("key", "issue", "--principal", ""), "'' can't name a principal"),
            (("key", "issue", "--principal", "x" * 129), "can't name a principal"),
            (("key", "issue", "--tenant", "Acme"), "'Acme' can't name a tenant"),
            (("key", "issue", "--days", "0"), "--days must be 1 to "),
            (("key", "issue", "--role", "viewer", "--scope", "runs:read"), "--role or --scope, not both"),
            (("key", "issue", "--namespace", "../x"), "'../x' can't name a namespace"),
            (("key", "issue", "--principal", "tnt_a/svc_x"), "'tnt_a/svc_x' can't name a principal"),
            (("principal", "disable", "tnt_a/"), "'' can't name a principal"),
            (("principal", "disable", "a/svc_x"), "'a' can't name a tenant"),
            (("principal", "act-as", "tnt_a/svc_x", "--for", "tnt_b"), "can't name a principal"),
            (("principal", "act-as", "svc_x", "--for", "b"), "'b' can't name a tenant"),
            (("key", "issue", "--principal", "acme:ann"), "'acme:ann' can't name a principal"),
            (("token", "--principal", "acme:ann"), "'acme:ann' can't name a principal"),
            (("token", "--principal", "x y"), "'x y' can't name a principal"),
            (("token", "--principal", "usr_ann\n"), "can't name a principal"),
            (("token", "--minutes", "61"), "--minutes must be 1 to 60, not 61"),
            (("agent", "show", "agt_x", "--version", "0"), "--version must be 1 to "),
            (("agent", "list", "--tenant", "x"), "'x' can't name a tenant"),
            (("agent", "publish", "/no/such/file.json"), "/no/such/file.json can't be read: No such file"),
        ],
    )
    def test_nonsense_is_usage_with_a_sentence_before_anything_is_looked_for(
        self, environ: dict[str, str], line: tuple[str, ...], says: str
    ) -> None:
        said = agentos(*line, environ=environ)

        assert said.code == 2
        assert says in said.err
        assert said.out == ""

    def test_prod_makes_no_sample_agent_for_a_model_that_it_does_not_serve(
        self, environ: dict[str, str], tmp_path: Path
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".agentos.env").write_text("AGENTOS_MODE=prod\n")

        said = agentos("tenant", "create", "tnt_x", "--sample-agent", environ=environ)

        assert said.code == 2
        assert "AGENTOS_DEMO_AGENT_MODEL" in said.err

    @pytest.mark.parametrize("principal", ["svc_shop", "usr_ann", "ann@example.org", "x", "a-b.c_d"])
    def test_principals_as_people_name_them_are_taken(self, environ: dict[str, str], principal: str) -> None:
        assert agentos("token", "--principal", principal, environ=environ).code == 3


class TestConfig:
    def test_explain_prints_every_key_with_its_origin(self, environ: dict[str, str], tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / ".agentos.env").write_text("AGENTOS_STACK_A_PORT=9001\n")

        said = agentos("config", "explain", "--json", environ=environ)

        settings = {entry["key"]: entry for entry in msgspec.json.decode(said.out)["settings"]}
        assert said.code == 0
        assert settings["AGENTOS_STACK_A_PORT"]["value"] == "9001"
        assert settings["AGENTOS_STACK_A_PORT"]["origin"] == ".agentos.env:1"
        assert settings["AGENTOS_STACK_B_PORT"]["origin"] == "default"

    def test_a_table_is_never_cut(self, environ: dict[str, str]) -> None:
        said = agentos("config", "explain", environ=environ)

        assert "AGENTOS_ALLOW_EMBEDDED_POSTGRES" in said.out
        assert "…" not in said.out

    def test_a_broken_file_is_usage_with_its_line(self, environ: dict[str, str], tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / ".agentos.env").write_text("AGENTOS_MOOD=good\n")

        said = agentos("status", environ=environ)

        assert said.code == 2
        assert ".agentos.env:1: unknown key 'AGENTOS_MOOD'; did you mean AGENTOS_MODE?" in said.err


class TestUpRefusals:
    def test_prod_without_a_database_is_refused_and_nothing_is_made(
        self, environ: dict[str, str], tmp_path: Path
    ) -> None:
        said = agentos("up", "--mode", "prod", environ=environ)

        assert said.code == 2
        assert "--allow-embedded-postgres" in said.err
        assert not (tmp_path / "home").exists()

    def test_a_mistake_in_the_backends_is_refused_before_anything_is_started(
        self, environ: dict[str, str], tmp_path: Path
    ) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / ".agentos.env").write_text(
            'AGENTOS_BACKENDS=[{"name": "x", "kind": "opnai", "base_url": "http://x"}]\n'
        )

        said = agentos("up", environ=environ)

        assert said.code == 2
        assert "openai_compatible" in said.err
        assert [path.name for path in home.iterdir()] == [".agentos.env"]

    def test_a_profile_that_does_not_exist_is_refused(self, environ: dict[str, str]) -> None:
        said = agentos("up", "--profile", "gpu-node", environ=environ)

        assert said.code == 2
        assert "AGENTOS_PROFILE=gpu-node" in said.err


class TestNukeWithoutConsent:
    def test_nothing_is_removed_and_the_exit_code_is_not_zero(self, environ: dict[str, str], tmp_path: Path) -> None:
        node = Node.locate(environ)
        node.create()
        (node.secrets / "precious").write_text("x")

        said = agentos("nuke", "--hard", environ=environ)

        assert said.code == 2
        assert f"would remove {node.secrets}" in said.out
        assert "./agentos nuke --hard --yes-really" in said.err
        assert (tmp_path / "home" / "secrets" / "precious").exists()

    def test_the_soft_one_would_keep_data_and_secrets(self, environ: dict[str, str]) -> None:
        node = Node.locate(environ)
        node.create()

        said = agentos("nuke", environ=environ)

        assert f"would remove {node.run_dir}" in said.out
        assert str(node.secrets) not in said.out


class TestRoles:
    def test_roles_hold_known_scopes_only(self) -> None:
        assert all(scopes <= SCOPES for scopes in ROLES.values())

    def test_only_the_platform_admin_crosses_tenants(self) -> None:
        assert [role for role, scopes in ROLES.items() if "admin:platform" in scopes] == ["platform_admin"]

    def test_an_unknown_role_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(InvalidArgument, match="tenant_admin"):
            scopes_of("root")


class TestRunsCommand:
    def decision(self, *line: str) -> dict[str, object]:
        parsed = parser().parse_args(["runs", "resolve", "run_x", "--step", "2", *line])
        return decision_of(parsed.options(parsed))

    def test_each_decision_is_its_request(self) -> None:
        assert self.decision("--done", "null") == {"step": 2, "decision": "done", "output": None}
        assert self.decision("--fail", "no") == {"step": 2, "decision": "fail", "message": "no"}
        assert self.decision("--retry") == {"step": 2, "decision": "retry"}

    def test_an_output_that_is_not_json_is_usage(self, environ: dict[str, str]) -> None:
        said = agentos("runs", "resolve", "run_x", "--step", "2", "--done", "yes", "--tenant", "tnt_a", environ=environ)

        assert said.code == 2
        assert "must be JSON" in said.err

    @pytest.mark.parametrize("line", [[], ["--retry", "--fail", "x"]])
    def test_a_decision_is_exactly_one(self, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.decision(*line)

        assert "--done" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            (("fork", "run_x", "--from-step", "-1"), "--from-step must be 0, which begins anew, or a step of the run"),
            (
                ("resolve", "run_x", "--step", "0", "--retry"),
                "--step must be a step of the run, which are numbered from 1",
            ),
        ],
    )
    def test_a_step_that_no_run_has_is_usage(self, environ: dict[str, str], line: tuple[str, ...], says: str) -> None:
        said = agentos("runs", *line, environ=environ)

        assert said.code == 2
        assert says in said.err

    RUN: ClassVar[dict[str, Any]] = {
        "run_id": "run_x", "status": "running", "agent_id": "agt_a", "agent_version": 1, "parent_run_id": None,
        "depth": 0, "forked_from": None, "waits_for": None, "priority": 5, "created_at": "2026-01-01T00:00:00Z",
        "principal_id": "usr_a", "finished_at": None, "deadline_at": "2026-01-01T00:10:00Z",
        "cancel_requested_at": None, "recoveries": 0,
        "usage": {"total_tokens": 0, "cost_nanousd": 0}, "input": "x", "error": None, "output": None,
    }  # fmt: skip

    def test_a_run_that_was_asked_to_end_and_goes_on_shows_it(self) -> None:
        asked = {**self.RUN, "cancel_requested_at": "2026-01-01T00:01:00Z"}
        ended = {**asked, "status": "cancelled", "finished_at": "2026-01-01T00:01:01Z"}

        assert ("to end", "as asked at 2026-01-01 00:01:00") in list(facts_of(asked))
        assert all("to end" not in dict(facts_of(run)) for run in (self.RUN, ended))

    @pytest.mark.parametrize(
        ("status", "says"),
        [
            ("running", []),
            ("succeeded", []),
            ("failed", ["Next: ./agentos runs retry run_x"]),
            ("waiting", ["It waits for runs that it made. Next: ./agentos runs list --parent run_x"]),
        ],
    )
    def test_what_to_do_about_a_run_is_said(self, status: str, says: list[str]) -> None:
        assert list(next_of({**self.RUN, "status": status}, [])) == says

    def test_each_step_that_waits_for_a_decision_has_its_command(self) -> None:
        steps = [
            {"n": n, "name": "send", "status": one} for n, one in ((1, "completed"), (2, "unknown"), (3, "unknown"))
        ]

        said = "\n".join(next_of({**self.RUN, "status": "needs_operator"}, steps))

        assert [n for n in (1, 2, 3) if f"./agentos runs resolve run_x --step {n} " in said] == [2, 3]
        assert "key run_x:2" in said

    @pytest.mark.parametrize("limit", ["0", "201"])
    def test_a_page_has_its_bounds(self, environ: dict[str, str], limit: str) -> None:
        assert agentos("runs", "list", "--limit", limit, environ=environ).code == 2


class TestReplayCommand:
    def test_a_divergence_names_the_step_and_both_sides(self) -> None:
        divergence = Divergence(
            step=2, expected=Decision(what="tool add", digest="a1"), recorded=None, reason="it is not there"
        )

        lines = told(Replayed(decisions=1, complete=False, divergence=divergence), divergence)

        assert lines == [
            "1 decisions equal, then one differs at step 2: it is not there",
            "  expected  tool add  a1",
            "  recorded  nothing",
        ]


class TestTestCommand:
    def test_every_check_is_part_of_it(self) -> None:
        planned = steps(Options(), Path("/bin"))

        assert [step.name for step in planned] == ["format", "lint", "types", "imports", "tests", "alone"]

    def test_every_test_is_run_once(self) -> None:
        beside, alone = steps(Options(), Path("/bin"))[-2:]

        assert beside.command[-2:] == ("-m", "not alone")
        assert alone.command[-3:] == ("-m", "alone", "tests/e2e")
        assert "-n" not in alone.command

    def test_fast_leaves_out_what_starts_servers(self) -> None:
        tests = steps(Options(fast=True), Path("/bin"))[-1]

        assert "--ignore=tests/e2e" in tests.command

    def test_arguments_after_the_dashes_reach_pytest(self) -> None:
        parsed = parser().parse_args(["test", "--fast", "--", "-k", "isolation"])

        assert steps(parsed.options(parsed), Path("/bin"))[-1].command[3:5] == ("-k", "isolation")

    def test_faults_are_simulated_and_then_done_to_real_services(self) -> None:
        parsed = parser().parse_args(["test", "faults", "--minutes", "3", "--seed", "7"])

        simulation, faults = steps(parsed.options(parsed), Path("/bin"))

        assert int(simulation.environment["AGENTOS_SIMULATION_EXAMPLES"]) >= 2_000
        assert faults.command[1:] == ("-m", "tests.faults", "--minutes", "3", "--seed", "7")

    def test_points_are_the_kills_alone(self) -> None:
        parsed = parser().parse_args(["test", "faults", "--points", "20", "--seed", "7"])

        [kills] = steps(parsed.options(parsed), Path("/bin"))

        assert kills.command[1:] == ("-m", "tests.faults", "--points", "20", "--seed", "7")

    def test_controls_are_taken_out_by_their_own_command(self) -> None:
        parsed = parser().parse_args(["test", "controls", "--row", "S1", "--row", "T4", "--jobs", "3"])

        [controls] = steps(parsed.options(parsed), Path("/bin"))

        assert controls.command[1:] == ("-m", "tests.controls", "--row", "S1", "--row", "T4", "--jobs", "3")

    @pytest.mark.parametrize("flags", [("--row", "S1"), ("faults", "--jobs", "2"), ("controls", "--minutes", "3")])
    def test_flags_of_another_command_are_usage(self, flags: tuple[str, ...], environ: dict[str, str]) -> None:
        assert agentos("test", *flags, environ=environ).code == 2

    @pytest.mark.parametrize("flags", [("--points", "3"), ("faults", "--points", "3", "--minutes", "3")])
    def test_points_go_with_faults_and_without_minutes(self, flags: tuple[str, ...], environ: dict[str, str]) -> None:
        assert agentos("test", *flags, environ=environ).code == 2

    def test_minutes_without_faults_are_usage(self, environ: dict[str, str]) -> None:
        assert agentos("test", "--minutes", "3", environ=environ).code == 2
