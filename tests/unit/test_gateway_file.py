"""The gateway's file as an operator meets it: the page that teaches it, the check before it is in force."""

import json
import re
from pathlib import Path

import pytest

from deploy.config import Config
from deploy.gateway_file import environment_of, problems
from stack_b.configuration import parse_configuration
from tests.support.cli import agentos

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gateway.md"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AGENTOS_HOME": str(tmp_path / "home")}


def example() -> str:
    [found] = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def test_the_example_of_the_page_is_usable_and_says_what_the_page_says(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "key").write_text("sk-canary")
    file = tmp_path / "gateway.json"
    file.write_text(example().replace("/etc/agentos/models.key", str(tmp_path / "key")))

    said = agentos("gateway", "check", str(file), environ=environ)

    assert said.code == 0
    rows = [line.split(None, 2) for line in said.out.splitlines()]
    assert ["default", "alias", "primary/large, left/own, right/own, primary/small"] in rows
    assert ["cheap", "alias", "primary/small"] in rows
    assert "5 % of who asks for default get own" in said.err
    assert f"version {parse_configuration(file.read_text()).version}" in said.err
    assert "sk-canary" not in said.out + said.err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"routing": {"aliases": {"a": "b", "b": "c"}}}', "leads to another alias"),
        ('{"backends": [{"name": "a", "base_url": "http://a", "api_key": "env:NOT_THERE"}]}', "NOT_THERE"),
        ('{"backends": [{"name": "a"}]}', "base_url"),
        ('{"backends": 1}', "$.backends"),
        ("{", "not usable"),
    ],
)
def test_what_can_not_be_used_is_said_before_it_is_in_force(
    tmp_path: Path, environ: dict[str, str], text: str, reason: str
) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(text)

    said = agentos("gateway", "check", str(file), environ=environ)

    assert said.code == 1
    assert reason in said.err
    assert reason in problems(Config(gateway_file=str(file)), environ)[0]


def test_everything_that_is_wrong_is_said_at_once_with_its_place(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "gateway.json"
    backends = [{"name": "a", "base_ur": "http://a"}, {"nam": "b"}, {"name": "c", "timeout_s": "5"}]
    file.write_text(json.dumps({"backends": backends, "rooting": {}}))

    said = agentos("gateway", "check", str(file), "--json", environ=environ)

    found = json.loads(said.out)
    assert (said.code, found["usable"]) == (1, False)
    assert {(one["code"], one["path"]) for one in found["diagnostics"]} == {
        ("unknown_member", "$.backends[0].base_ur"),
        ("unknown_member", "$.backends[1].nam"),
        ("missing_member", "$.backends[1]"),
        ("shape", "$.backends[2].timeout_s"),
        ("unknown_member", "$.rooting"),
    }
    assert {one["hint"] for one in found["diagnostics"] if one["code"] == "unknown_member"} == {
        "did you mean 'base_url'?", "did you mean 'name'?", "did you mean 'routing'?",
    }  # fmt: skip


def test_what_a_file_may_refer_to_and_a_stored_version_may_not_is_a_warning(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"backends": [{"name": "a", "base_url": "http://a", "api_key": "env:A_KEY"}]}))

    said = agentos("gateway", "check", str(file), environ={**environ, "A_KEY": "sk-canary"})

    assert said.code == 0
    assert "warning: $.backends[0].api_key: not for `gateway apply`" in said.err
    assert "AGENTOS_GATEWAY_ENV" in said.err


@pytest.mark.parametrize("line", [["check"], ["show"], ["history"], ["rollback", "1"]])
def test_without_a_file_what_is_stored_is_asked_for_which_needs_a_node(
    line: list[str], environ: dict[str, str]
) -> None:
    said = agentos("gateway", *line, environ=environ)

    assert said.code == 3
    assert "./agentos up" in said.err


def test_where_the_configuration_comes_from_is_explained(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "gateway.json"
    file.write_text("{}")
    store = agentos("config", "explain", environ=environ)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".agentos.env").write_text(f"AGENTOS_GATEWAY_FILE={file}\n")
    named = agentos("config", "explain", "--json", environ=environ)

    assert "comes from the store" in store.err
    assert f"the file {file}" in json.loads(named.out)["gateway_configuration"]


def test_a_path_is_absolute_and_its_secrets_go_to_the_gateway_only(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"backends": [{"name": "a", "base_url": "http://a", "api_key": "env:A_KEY"}]}))
    config = Config(gateway_file=str(file))

    assert "absolute" in problems(Config(gateway_file="gateway.json"), {})[0]
    assert environment_of(config, {"A_KEY": "s", "OTHER": "o"}) == {"AGENTOS_GATEWAY_FILE": str(file), "A_KEY": "s"}
    assert problems(config, {"A_KEY": "s"}) == []


@pytest.mark.parametrize("text", ["{", '{"output_slice_tokens": 0}', '{"slices": 1}', "[]"])
def test_limits_that_can_not_be_are_said_before_the_gateway_starts(text: str) -> None:
    [problem] = problems(Config(gateway_limits=text), {})

    assert problem.startswith("AGENTOS_GATEWAY_LIMITS")
