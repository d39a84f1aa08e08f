"""The file of trusted issuers: checked before a service reads it, and given to those that take tokens."""

import json
from pathlib import Path

import pytest

from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key, jwks
from deploy import config, issuers_file
from deploy.roots.environment import Environment
from deploy.roots.tokens import verifier_of_a_node
from deploy.roots.wiring import Choice, open_ports
from ports.errors import Unauthenticated, Unavailable

GOOD = {"issuers": [{"name": "acme", "issuer": "https://login.acme.example", "tenant": "tnt_acme"}]}


def settings(file: Path | str, **more: str) -> config.Config:
    return config.resolve({"issuers_file": str(file), **more}, {}).config


def test_a_good_file_has_no_problems_and_goes_to_the_services_with_the_way_out(tmp_path: Path) -> None:
    file = tmp_path / "issuers.json"
    file.write_text(json.dumps(GOOD))

    assert issuers_file.problems(settings(file)) == []
    assert issuers_file.environment_of(settings(file, egress='{"ports": [443]}')) == {
        "AGENTOS_ISSUERS_FILE": str(file),
        "AGENTOS_EGRESS": '{"ports": [443]}',
    }


def test_without_a_file_there_is_nothing_to_say() -> None:
    assert issuers_file.problems(settings("")) == []
    assert issuers_file.environment_of(settings("", egress="{}")) == {}


@pytest.mark.parametrize(
    ("file", "text"), [("issuers.json", "absolute"), ("/nowhere/issuers.json", "can't be read"), ("bad", "for whom")]
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / "bad").write_text(json.dumps({"issuers": [{"name": "acme", "issuer": "https://login.acme.example"}]}))

    [problem] = issuers_file.problems(settings(tmp_path / file if file == "bad" else file))

    assert problem.startswith("AGENTOS_ISSUERS_FILE")
    assert text in problem


@pytest.mark.anyio
async def test_a_service_opens_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "issuers.json"
    file.write_text(json.dumps(GOOD))
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(generate_key(tmp_path / "key.pem"))))
    known = {"AGENTOS_ISSUER": "urn:x", "AGENTOS_JWKS_FILE": str(tmp_path / "jwks.json")}
    tenant = {"tenant": Choice(adapter="inproc", config={"name": tmp_path.name})}

    for variables in (known, {**known, "AGENTOS_ISSUERS_FILE": str(file)}):
        choices = tenant | verifier_of_a_node(Environment(variables), "stack-a")
        async with open_ports(choices, {"verifier": None}, clock=SystemClock()) as ports:
            with pytest.raises(Unauthenticated):
                await ports["verifier"].verify("no token")

    file.write_text("{")
    choices = tenant | verifier_of_a_node(Environment({**known, "AGENTOS_ISSUERS_FILE": str(file)}), "stack-a")
    with pytest.raises(Unavailable):
        async with open_ports(choices, {"verifier": None}, clock=SystemClock()):
            pass
