"""A node with a home beside its database: set up, moved to and back from by the command line, with runs all along."""

import json
from collections.abc import Iterator

import pytest

from tests.support.node import NodeUnderTest, running_node
from tests.support.ports import free_ports

TENANT = "tnt_mover"
LEAVER = "tnt_leaver"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    with running_node(tmp_path_factory.mktemp("homes") / "home") as node:
        yield node


def told(node: NodeUnderTest, *arguments: str) -> str:
    done = node.command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_tenant_of_a_node_moves_to_a_home_and_back(node: NodeUnderTest) -> None:
    refused = node.command("tenant", "move", node.tokens().tenant_id, "--to", "lab")
    assert (refused.returncode, "there is no home 'lab'" in refused.stderr) == (2, True)
    [port] = free_ports(1)
    with node.node.env_file.open("a") as settings:
        settings.write(f"AGENTOS_HOMES=lab={port},embedded\n")
    node.agentos("up", "--json")
    assert "stack-a-worker-lab" in node.pids()
    told(node, "tenant", "create", TENANT, "--sample-agent")
    question = ("run", "agt_demo", "What is 2 + 2?", "--tenant", TENANT)
    told(node, *question)
    assert told(node, "tenant", "move", TENANT) == f"{TENANT} lives in shared\n"

    plan = json.loads(told(node, "tenant", "move", TENANT, "--to", "lab", "--dry-run", "--json"))
    report = json.loads(told(node, "tenant", "move", TENANT, "--to", "lab", "--json"))

    assert report["rows"] == plan["rows"]
    assert report["rows"]["runs"] == 1
    assert told(node, "tenant", "move", TENANT) == f"{TENANT} lives in lab\n"
    told(node, *question)
    listed = told(node, "runs", "list", "--tenant", TENANT)
    assert listed.count("succeeded") == 2
    told(node, "run", "agt_demo", "What is 2 + 2?")  # the others stay where they were
    told(node, "tenant", "quota", TENANT, "--max-active-runs", "3")
    audit_is_whole(node)
    told(node, "tenant", "move", TENANT, "--clear", "--grace-hours", "0")
    back = json.loads(told(node, "tenant", "move", TENANT, "--to", "shared", "--json"))
    assert back["rows"]["runs"] == 2
    told(node, *question)
    told(node, "validate")
    audit_is_whole(node)


def test_a_tenant_that_lives_in_a_home_is_exported_and_deleted(node: NodeUnderTest) -> None:
    """After the test above, which sets the home up."""
    told(node, "tenant", "create", LEAVER, "--sample-agent")
    told(node, "tenant", "move", LEAVER, "--to", "lab")
    told(node, "run", "agt_demo", "What is 2 + 2?", "--tenant", LEAVER)
    told(node, "tenant", "disable", LEAVER)
    refused = node.command("tenant", "delete", LEAVER, "--confirm", LEAVER)
    assert (refused.returncode, "--clear" in refused.stderr) == (1, True), refused.stderr
    told(node, "tenant", "move", LEAVER, "--clear", "--grace-hours", "0")

    gone = json.loads(told(node, "tenant", "delete", LEAVER, "--confirm", LEAVER, "--json"))

    assert gone["done"]
    assert gone["export"]["manifest"]["tables"]["lab/runs"]["rows"] == 1
    assert LEAVER not in told(node, "tenant", "list")
    audit_is_whole(node)


def audit_is_whole(node: NodeUnderTest) -> None:
    told(node, "audit", "sign")
    found = json.loads(told(node, "audit", "verify", "--json"))
    assert found["good"], found
    assert {"", "lab"} <= {one["home"] for one in found["tenants"]}
