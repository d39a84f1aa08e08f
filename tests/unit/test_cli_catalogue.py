"""The catalogue, and what supervisord is told of it."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from adapters.postgres.engine import CALL_SECONDS
from deploy import config
from deploy.catalogue import OWNER_MARK, Service, catalogue, environment_json, stack_a_url, successor
from deploy.config import Config
from deploy.node import MAX_SOCKET_PATH_CHARS, Node, write_private
from deploy.roots.server import GRACE_S, WAY_OUT_S
from deploy.roots.stack_a_worker import DRAIN
from deploy.supervision import render


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.locate({"AGENTOS_HOME": str(tmp_path / "a home with % and blanks")})


def by_name(node: Node, settings: Config, environ: dict[str, str] | None = None) -> dict[str, Service]:
    return {service.name: service for service in catalogue(node, settings, environ or {})}


class TestCatalogue:
    def test_dependencies_come_before_what_depends_on_them(self, node: Node) -> None:
        seen: set[str] = set()
        for service in catalogue(node, Config(), {}):
            assert seen.issuperset(service.depends_on), service.name
            seen.add(service.name)

        assert seen == {"postgres", "stack-a", "stack-a-worker", "stack-b", "admin"}

    def test_an_external_database_is_nobody_s_service_here(self, node: Node) -> None:
        services = by_name(
            node, Config(database_url="env:DB", database_owner_url="env:OWNER", database_control_url="env:CONTROL")
        )

        assert "postgres" not in services
        assert all("postgres" not in service.depends_on for service in services.values())

    def test_a_worker_is_not_killed_while_it_hands_back_its_runs(self, node: Node) -> None:
        worker = by_name(node, Config())["stack-a-worker"]

        # Two calls of the store, for as long as one may take.
        assert worker.stop_wait_s >= GRACE_S + WAY_OUT_S + DRAIN.total_seconds() + 2 * CALL_SECONDS

    def test_only_the_gateway_gets_the_provider_s_key(self, node: Node) -> None:
        settings = Config(backends='[{"name": "x", "api_key": "env:OTHER_KEY"}]')
        services = by_name(node, settings, {"OPENAI_API_KEY": "sk-one", "OTHER_KEY": "sk-two", "UNRELATED": "x"})

        holders = {
            name for name, service in services.items() if {"sk-one", "sk-two"} & set(service.environment.values())
        }
        assert holders == {"stack-b"}
        assert not any("UNRELATED" in service.environment for service in services.values())

    def test_a_stored_configuration_may_refer_to_what_is_listed_and_the_admin_api_knows_names_only(
        self, node: Node
    ) -> None:
        settings = Config(gateway_env="ONE, ABSENT")
        services = by_name(node, settings, {"ONE": "sk-one", "TWO": "sk-two"})

        assert [name for name, service in services.items() if "sk-one" in service.environment.values()] == ["stack-b"]
        for name in ("stack-b", "admin"):
            environment = services[name].environment
            assert environment["AGENTOS_GATEWAY_ENV"] == "ONE"
            assert environment["AGENTOS_GATEWAY_SECRETS_DIR"] == str(node.gateway_secrets)

    def test_the_gateway_is_told_its_limits(self, node: Node) -> None:
        services = by_name(node, Config(gateway_limits='{"output_slice_tokens": 512}'))

        told = {name for name, service in services.items() if "AGENTOS_GATEWAY_LIMITS" in service.environment}
        assert told == {"stack-b"}

    def test_only_the_worker_gets_the_signing_key(self, node: Node) -> None:
        services = by_name(node, Config())

        assert [name for name, service in services.items() if "AGENTOS_ISSUER_KEY_FILE" in service.environment] == [
            "stack-a-worker"
        ]

    def test_services_get_paths_of_secrets_and_no_secret(self, node: Node) -> None:
        for service in catalogue(node, Config(), {}):
            assert not any("://ao_" in value for value in (*service.environment.values(), *service.command))

    def test_every_service_is_marked_with_its_node(self, node: Node) -> None:
        marks = {
            service.environment.get(OWNER_MARK) for service in catalogue(node, Config(), {}) if service.environment
        }

        assert marks == {str(node.home)}

    def test_who_has_clients_has_a_door_and_its_successor_comes_through_it(self, tmp_path: Path) -> None:
        deep = Node.locate({"AGENTOS_HOME": str(tmp_path / ("d" * 120))})
        for service in catalogue(deep, Config(), {}):
            assert (service.handover is not None) == (service.name in {"stack-a", "stack-b", "admin"})
            if service.handover is not None:
                assert len(os.fsencode(service.handover)) <= MAX_SOCKET_PATH_CHARS
                assert service.environment["AGENTOS_HANDOVER"] == str(service.handover)
                assert (successor(service).handover, successor(service).listens) == (service.handover, service.listens)
                assert successor(service).name == f"{service.name}-next"

    def test_a_listener_on_every_address_is_reached_by_loopback(self) -> None:
        assert stack_a_url(Config(stack_a_host="0.0.0.0", stack_a_port=1)) == "http://127.0.0.1:1"  # noqa: S104 - compared
        assert stack_a_url(Config(stack_a_host="::", stack_a_port=1)) == "http://[::1]:1"


class TestRendering:
    def test_supervisord_reads_back_what_was_meant(self, node: Node) -> None:
        parsed = configparser.RawConfigParser()
        parsed.read_string(render(node, catalogue(node, Config(), {}), as_root=False))

        assert parsed["unix_http_server"]["chmod"] == "0700"
        assert parsed["supervisord"]["logfile"].replace("%%", "%") == str(node.supervisor_log)
        for name in ("postgres", "stack-a", "stack-a-worker", "stack-b", "admin"):
            program = parsed[f"program:{name}"]
            assert (program["autostart"], program["autorestart"]) == ("false", "true")
            assert program["stdout_logfile"].replace("%%", "%") == str(node.log_of(name))

    def test_no_value_of_an_environment_is_in_the_configuration(self, node: Node) -> None:
        text = render(node, catalogue(node, Config(), {"OPENAI_API_KEY": "sk-hidden"}), as_root=False)

        assert "sk-hidden" not in text

    def test_a_changed_environment_is_a_changed_command(self, node: Node) -> None:
        def command(settings: Config) -> str:
            parsed = configparser.RawConfigParser()
            parsed.read_string(render(node, catalogue(node, settings, {}), as_root=False))
            return parsed["program:stack-b"]["command"]

        assert command(Config()) == command(Config())
        assert command(Config()) != command(Config(mode="dev"))

    def test_a_home_too_deep_for_a_socket_gets_a_short_one(self, tmp_path: Path) -> None:
        deep = Node.locate({"AGENTOS_HOME": str(tmp_path / ("d" * 120))})

        assert len(os.fsencode(deep.supervisor_socket)) <= MAX_SOCKET_PATH_CHARS
        assert deep.supervisor_socket != Node.locate({"AGENTOS_HOME": str(tmp_path / ("e" * 120))}).supervisor_socket


class TestLaunch:
    def test_a_service_starts_with_exactly_the_environment_written_for_it(self, tmp_path: Path) -> None:
        # Quotes, percent signs and line breaks: what a configuration file would have trouble with.
        wanted = {"ODD": "a \"b\" 'c' %(d)s\n", "PYTHONPATH": str(Path(config.__file__).parent.parent)}
        environment = tmp_path / "x.env.json"
        write_private(environment, msgspec.json.encode(wanted).decode())
        dump = "import os, json; print(json.dumps(dict(os.environ)))"

        done = subprocess.run(
            [sys.executable, "-m", "deploy.launch", str(environment), "digest", sys.executable, "-c", dump],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": wanted["PYTHONPATH"], "LEAK": "yes"},
            timeout=30,
        )

        found = msgspec.json.decode(done.stdout, type=dict[str, str])
        assert {name: value for name, value in found.items() if name != "LC_CTYPE"} == wanted

    def test_the_environment_file_is_the_same_for_the_same_service(self, node: Node) -> None:
        first, second = (by_name(node, Config())["stack-a"] for _ in range(2))

        assert environment_json(first) == environment_json(second)
