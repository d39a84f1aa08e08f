"""Preflight: what is refused, and whether the sentence helps."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.catalogue import Service, catalogue
from deploy.config import Config
from deploy.node import Node
from deploy.preflight import disk_check, free_mib, next_free, port_check, python_check, system_check
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
    check = port_check(stack_a_on(listener, tmp_path), mine=set())

    assert not check.ok
    assert f"127.0.0.1:{listener}" in check.detail
    assert f"pid {os.getpid()}" in check.detail
    assert "./agentos up --port-stack-a " in check.next_command
    assert "AGENTOS_STACK_A_PORT" in check.next_command


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
