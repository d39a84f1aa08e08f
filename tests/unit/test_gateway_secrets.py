"""What a stored configuration may refer to: whoever changes models from afar must not read this machine's files."""

from pathlib import Path

import pytest

from deploy.roots.gateway_secrets import DIRECTORY, NAMES, check_reference, check_stored
from ports.errors import InvalidArgument
from stack_b.backends.settings import BackendSettings
from stack_b.configuration import Configuration
from stack_b.diagnosis import NodeFacts, diagnosed


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    allowed = tmp_path / "gateway-secrets"
    allowed.mkdir()
    (allowed / "key").write_text("sk-one")
    (allowed / "empty").write_text("")
    (tmp_path / "issuer_key.pem").write_text("the node's own")
    (allowed / "link").symlink_to(tmp_path / "issuer_key.pem")
    return {DIRECTORY: str(allowed), NAMES: "LISTED,OTHER", "LISTED": "sk-two", "UNLISTED": "sk-three"}


def test_files_of_the_directory_and_listed_variables_are_fine(variables: dict[str, str]) -> None:
    check_reference(f"file:{variables[DIRECTORY]}/key", variables)
    check_reference("env:LISTED", variables)


def test_a_name_in_the_store_is_fine_and_is_not_looked_up_here(variables: dict[str, str]) -> None:
    """What may be read there is for the store to say; nobody but the gateway asks it."""
    found = BackendSettings(name="a", base_url="http://a", api_key="secret:team/openai#key@2")

    check_stored(Configuration(backends=(found,)), variables)
    told = diagnosed(
        {"backends": [{"name": "a", "base_url": "http://a", "api_key": found.api_key}]},
        NodeFacts(check_secret=lambda reference: check_reference(reference, variables)),
    )

    assert told.diagnostics == ()


@pytest.mark.parametrize(
    "reference",
    [
        "file:{dir}/../issuer_key.pem", "file:{dir}/link", "file:/etc/passwd", "file:{dir}/absent", "file:{dir}/empty",
        "file:{dir}", "file:", "file:gateway-secrets/key", "env:UNLISTED", "env:", "env:LISTED,OTHER", "sk-plain", "",
        "secret:", "secret:../issuer_key.pem", "secret:/etc/passwd", "secret:a b",
    ],
)  # fmt: skip
def test_whatever_else_is_refused_and_no_content_is_told(variables: dict[str, str], reference: str) -> None:
    reference = reference.replace("{dir}", variables[DIRECTORY])
    found = Configuration(backends=(BackendSettings(name="a", base_url="http://a", api_key=reference or "x"),))

    with pytest.raises(InvalidArgument) as refusal:
        check_reference(reference, variables)
    with pytest.raises(InvalidArgument, match="backend 'a'"):
        check_stored(found, variables)

    assert not {"the node's own", "sk-one", "sk-plain"} & {refusal.value.message}
    assert "the node's own" not in refusal.value.message


def test_without_a_directory_no_file_is_allowed(variables: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match=DIRECTORY):
        check_reference(f"file:{variables[DIRECTORY]}/key", {})


def test_an_empty_name_is_no_listed_variable(variables: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match=NAMES):
        check_reference("env:", {**variables, NAMES: ""})


@pytest.mark.parametrize("place", ["{dir}/../issuer_key.pem", "{dir}/link", "/dev/zero", "/etc/hostname", "key"])
def test_nor_may_certificates_be_any_file(variables: dict[str, str], place: str) -> None:
    place = place.replace("{dir}", variables[DIRECTORY])
    found = Configuration(backends=(BackendSettings(name="a", base_url="https://a", ca_file=place),))
    facts = NodeFacts(check_secret=lambda reference: check_reference(reference, variables))

    with pytest.raises(InvalidArgument, match="the ca_file of backend 'a'"):
        check_stored(found, variables)
    told = diagnosed({"backends": [{"name": "a", "base_url": "https://a", "ca_file": place}]}, facts)

    assert [(one.path, one.severity) for one in told.diagnostics] == [("$.backends[0].ca_file", "error")]


def test_certificates_in_the_directory_are_fine(variables: dict[str, str]) -> None:
    found = BackendSettings(name="a", base_url="https://a", ca_file=f"{variables[DIRECTORY]}/key")

    check_stored(Configuration(backends=(found,)), variables)
