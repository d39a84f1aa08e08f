"""Preflight: what is refused, and whether the sentence helps."""

import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from deploy.catalogue import Service, catalogue
from deploy.cli.main import parser
from deploy.cli.up_command import FLAGS
from deploy.config import Config
from deploy.node import Node
from deploy.preflight import disk_check, free_mib, next_free, port_check, port_checks, python_check, system_check
from deploy.processes import holder_of, named


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def stack_a_on(port: int, tmp_path: Path) -> Service:
    node = Node.locate({"AGENTOS_HOME": str(tmp_path)})
    services = catalogue(node, Config(stack_a_port=port), {})
    return next(service for service in services if service.name == "stack-a")


def test_an_occupied_port_is_named_with_its_holder_and_the_remedy(listener: int, tmp_path: Path) -> None:
    [check] = port_checks([stack_a_on(listener, tmp_path)], mine=set())

    assert not check.ok
    assert f"127.0.0.1:{listener}" in check.detail
    assert f"pid {os.getpid()}" in check.detail
    assert "./agentos up --port-stack-a " in check.next_command
    assert "AGENTOS_STACK_A_PORT" in check.next_command


class TestSeveralTakenPorts:
    @pytest.fixture
    def taken(self) -> Iterator[list[int]]:
        with ExitStack() as stack:
            servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
            yield [server.getsockname()[1] for server in servers]

    def test_one_command_moves_all_of_them_to_ports_that_are_free(self, taken: list[int], tmp_path: Path) -> None:
        node = Node.locate({"AGENTOS_HOME": str(tmp_path)})
        a, b, worker, admin, postgres = taken
        ports = {"stack_a": a, "stack_b": b, "worker": worker, "admin": admin, "postgres": postgres}
        config = Config(**{f"{name}_port": port for name, port in ports.items()})  # type: ignore[arg-type]  # ports all

        checks = port_checks(catalogue(node, config, {}), mine=set())

        assert [check.ok for check in checks] == [False] * 5
        [command] = {check.next_command for check in checks}
        words = command.split("   (")[0].split()
        assert words[:2] == ["./agentos", "up"]
        assert set(words[2::2]) == {f"--port-{name.replace('_', '-')}" for name in ports}
        suggested = [int(word) for word in words[3::2]]
        assert len(set(suggested)) == 5
        with ExitStack() as stack:
            for port in suggested:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))

    def test_neighbours_are_not_sent_to_the_same_port_nor_to_one_another_s(self, tmp_path: Path) -> None:
        with neighbours(10) as (first, second):
            node = Node.locate({"AGENTOS_HOME": str(tmp_path)})
            # The first one's suggestion would be where the second sits, the second's where the worker is to be.
            config = Config(stack_a_port=first, stack_b_port=second, worker_port=second + 10)

            checks = port_checks(catalogue(node, config, {}), mine=set())

        command = next(check.next_command for check in checks if not check.ok)
        numbers = [int(word) for word in command.split("   (")[0].split() if word.isdigit()]
        assert len(set(numbers)) == len(numbers) >= 2
        assert not {first, second, second + 10} & set(numbers)

    def test_what_was_asked_for_stays_in_the_command(self, listener: int, tmp_path: Path) -> None:
        flags = {"mode": "dev", "stack_a_port": str(listener), "worker_port": "9", "allow_embedded_postgres": "true"}

        [check] = port_checks([stack_a_on(listener, tmp_path)], mine=set(), flags=flags)

        command = check.next_command.split("   (")[0]
        assert "--mode dev" in command
        assert "--port-worker 9" in command
        assert "--allow-embedded-postgres" in command
        assert command.count("--port-stack-a") == 1
        assert str(listener) not in command

    def test_every_flag_in_the_command_is_one_that_up_has(self, listener: int, tmp_path: Path) -> None:
        flags = {**dict.fromkeys(FLAGS.values(), "1"), "mode": "dev", "allow_embedded_postgres": "true"}

        [check] = port_checks([stack_a_on(listener, tmp_path)], mine=set(), flags=flags)

        words = shlex.split(check.next_command.split("   (")[0])
        assert parser().parse_args(words[1:]).mode == "dev"


@contextmanager
def neighbours(distance: int) -> Iterator[tuple[int, int]]:
    """Two taken ports, the second `distance` after the first."""
    for first in range(30_000, 32_000, 7):
        with suppress(OSError), ExitStack() as stack:
            for port in (first, first + distance):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            yield first, first + distance
            return
    pytest.fail("no two ports are free")


def test_the_suggested_port_is_free(listener: int) -> None:
    suggested = next_free("127.0.0.1", listener)

    with socket.create_server(("127.0.0.1", suggested)):
        assert suggested != listener


def test_a_port_held_by_our_own_service_is_fine(listener: int, tmp_path: Path) -> None:
    assert port_check(stack_a_on(listener, tmp_path), mine={os.getpid()}).ok


def test_a_port_held_by_a_child_of_our_own_service_is_fine(listener: int, tmp_path: Path) -> None:
    parent = psutil.Process().ppid()

    assert port_check(stack_a_on(listener, tmp_path), mine={parent}).ok


def test_a_free_port_is_fine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert port_check(stack_a_on(port, tmp_path), mine=set()).ok


def test_nobody_holds_a_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert holder_of(port) is None


def test_a_process_that_is_gone_can_still_be_named() -> None:
    assert f"pid {os.getpid()}" in named(psutil.Process())


@pytest.mark.parametrize(("version", "ok"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 1), True)])
def test_python_must_be_new_enough(version: tuple[int, ...], ok: bool) -> None:
    check = python_check(version)

    assert check.ok is ok
    assert bool(check.next_command) is not ok


def test_a_full_disk_is_refused_with_the_numbers(tmp_path: Path) -> None:
    check = disk_check(tmp_path, free=12)

    assert not check.ok
    assert "12 MiB free" in check.detail
    assert "AGENTOS_HOME" in check.next_command


def test_free_space_is_found_for_a_place_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_mib(tmp_path / "not" / "yet") > 0


def test_windows_is_sent_to_its_subsystem() -> None:
    assert "Subsystem" in system_check("win32").next_command
    assert system_check("linux").ok
