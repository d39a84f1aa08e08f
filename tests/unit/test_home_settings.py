"""What `AGENTOS_HOMES` may say, and what services make of it."""

from pathlib import Path

import pytest

from deploy.catalogue import catalogue
from deploy.config import Config, problems
from deploy.home_files import control_url_file, homes_set_up, owner_url_file, url_file
from deploy.home_settings import Home, parse_homes
from deploy.node import Node, write_private
from deploy.roots.databases import database_of
from deploy.roots.environment import Environment
from ports.errors import InvalidArgument

TWO = "eu1=8092,env:EU1_URL,file:/etc/eu1/owner,env:EU1_CONTROL; lab=8093,embedded"


def test_homes_are_named_with_a_port_and_where_they_are() -> None:
    assert parse_homes(TWO) == (
        Home(
            name="eu1",
            worker_port=8092,
            url="env:EU1_URL",
            owner_url="file:/etc/eu1/owner",
            control_url="env:EU1_CONTROL",
        ),
        Home(name="lab", worker_port=8093, url="", owner_url="", control_url=""),
    )
    assert parse_homes("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "eu1", "eu1=", "eu1=8092", "eu1=x,embedded", "eu1=0,embedded", "eu1=70000,embedded", "shared=8092,embedded",
        "EU=8092,embedded", "../eu=8092,embedded", "eu1=8092,embedded;eu1=8093,embedded", "=8092,embedded",
        "eu1=8092,postgresql://ao_app:hunter2@db/agentos,env:OWNER",
        "postgresql://ao_app:hunter2@db/agentos?sslmode=require",
        "eu1=8092,env:ONE", "eu1=8092,env:A,env:B", "eu1=8092,env:A,env:B,env:C,env:D",
        ";".join(f"h{n}={8100 + n},embedded" for n in range(33)),
    ],
)  # fmt: skip
def test_what_can_not_be_a_home_is_refused_without_telling_a_secret(text: str) -> None:
    with pytest.raises(InvalidArgument, match="AGENTOS_HOMES") as refused:
        parse_homes(text)

    assert "hunter2" not in refused.value.message
    assert any("AGENTOS_HOMES" in problem for problem in problems(Config(homes=text)))


def test_ports_are_taken_once_and_an_external_node_has_no_embedded_home() -> None:
    assert "8080" in problems(Config(homes="lab=8080,embedded"))[0]
    external = Config(
        homes="lab=8093,embedded", database_url="env:A", database_owner_url="env:B", database_control_url="env:C"
    )
    assert "can't be embedded" in problems(external)[0]
    assert problems(Config(homes=TWO)) == []


def test_each_home_has_a_worker_that_knows_no_other_database(tmp_path: Path) -> None:
    node = Node.locate({"AGENTOS_HOME": str(tmp_path)})

    services = {service.name: service for service in catalogue(node, Config(homes=TWO), {})}

    worker, home = services["stack-a-worker"], services["stack-a-worker-eu1"]
    differing = {name for name, value in home.environment.items() if worker.environment[name] != value}
    assert differing == {"AGENTOS_WORKER_PORT", "AGENTOS_DATABASE_URL_FILE"}
    assert home.environment["AGENTOS_DATABASE_URL_FILE"] == str(node.secret(url_file("eu1")))
    assert "stack-a-worker-lab" in services
    assert "AGENTOS_HOME_URL_FILES" not in worker.environment | home.environment
    assert services["stack-a"].environment["AGENTOS_HOME_URL_FILES"].startswith(f"eu1={node.secret(url_file('eu1'))};")
    administration = services["admin"].environment["AGENTOS_HOME_URL_FILES"]
    assert administration.startswith(f"eu1={node.secret(control_url_file('eu1'))};")
    assert "AGENTOS_HOME_URL_FILES" not in services["stack-b"].environment
    alone = {service.name: service for service in catalogue(node, Config(), {})}
    assert "AGENTOS_HOME_URL_FILES" not in alone["stack-a"].environment


def test_homes_with_like_names_have_files_apart(tmp_path: Path) -> None:
    node = Node.locate({"AGENTOS_HOME": str(tmp_path)})
    node.create()
    names = ["eu", "eu_control", "eu_owner"]
    files = [node.secret(file(name)) for name in names for file in (url_file, owner_url_file, control_url_file)]
    for file in files:
        write_private(file, "postgresql://x")

    assert len(set(files)) == 9
    assert homes_set_up(node) == names


def test_a_service_reads_each_address_from_its_file(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("own", "eu1")}
    for name, file in files.items():
        file.write_text(f"postgresql://{name}\n")
    variables = {"AGENTOS_DATABASE_URL_FILE": str(files["own"])}

    assert database_of(Environment(variables)) == {"dsn": "postgresql://own"}

    variables["AGENTOS_HOME_URL_FILES"] = f"eu1={files['eu1']}"
    with_homes = {"dsn": "postgresql://own", "homes": [["eu1", "postgresql://eu1"]]}
    assert database_of(Environment(variables)) == with_homes
    variables["AGENTOS_HOME_URL_FILES"] = "eu1"
    with pytest.raises(InvalidArgument, match="HOME_URL_FILES"):
        database_of(Environment(variables))
