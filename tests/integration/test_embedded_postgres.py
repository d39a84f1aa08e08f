"""The embedded server is hardened, survives being killed, and leaves nothing behind."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from adapters.postgres.bootstrap import RolePasswords, verifier_of, verifies
from adapters.postgres.engine import PostgresConfig, open_database
from deploy import embedded_postgres as embedded
from ports.errors import InvalidArgument, Unavailable
from tests.support.ports import free_port
from tests.support.postgres import execute, fetch
from tests.support.postgres_node import Node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("embedded") / "postgres")
    made.start()
    made.set_up()
    yield made
    made.end()


@pytest.mark.anyio
class TestHardening:
    def test_nobody_is_trusted(self, node: Node) -> None:
        rules = [
            line.split()
            for line in (node.server.layout.data / "pg_hba.conf").read_text().splitlines()
            if line.strip() and not line.startswith("#")
        ]

        assert rules
        assert {rule[-1] for rule in rules} == {"scram-sha-256"}

    async def test_a_wrong_password_is_refused(self, node: Node) -> None:
        for role in ("postgres", "ao_app", "ao_owner", "ao_control", "ao_admin"):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(f"postgresql://{role}:wrong@127.0.0.1:{node.server.port}/agentos")

    @pytest.mark.parametrize("database", ["postgres", "template1"])
    @pytest.mark.parametrize("role", ["ao_app", "ao_owner", "ao_control", "ao_admin"])
    async def test_our_roles_get_into_no_database_but_their_own(self, node: Node, role: str, database: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="CONNECT"):
            await asyncpg.connect(node.server.dsn(role, database))

    async def test_the_definer_role_can_not_log_in(self, node: Node) -> None:
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(f"postgresql://ao_def:x@127.0.0.1:{node.server.port}/agentos")

    def test_data_and_socket_are_their_owners_alone(self, node: Node) -> None:
        for path in (node.server.layout.data, node.server.layout.sockets):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700

    def test_the_server_does_not_run_as_root_and_listens_on_loopback_only(self, node: Node) -> None:
        process = embedded.server_process(node.server.layout)

        assert process is not None
        assert process.uids().effective != 0
        listening = [one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a copy elsewhere")
    def test_as_root_the_home_keeps_its_owner_and_mode(self, node: Node) -> None:
        found = node.server.layout.home.stat()

        assert found.st_uid == 0
        assert not node.server.layout.data.is_relative_to(node.server.layout.home)

    @pytest.mark.parametrize("role", ["postgres", "ao_admin", "ao_owner"])
    async def test_a_service_refuses_a_role_that_could_see_every_tenant(self, node: Node, role: str) -> None:
        with pytest.raises(InvalidArgument, match="ao_app"):
            async with open_database(PostgresConfig(dsn=node.server.dsn(role))):
                pass

    async def test_passwords_are_stored_as_verifiers_only(self, node: Node) -> None:
        rows = await fetch(node.server.dsn("postgres"), "SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin")

        assert {row["rolname"] for row in rows} == {"postgres", "ao_owner", "ao_app", "ao_control", "ao_admin"}
        assert all(row["rolpassword"].startswith("SCRAM-SHA-256$") for row in rows)


class TestLife:
    def test_a_second_set_up_changes_nothing(self, node: Node) -> None:
        before = (node.server.layout.data / "pg_hba.conf").stat()

        embedded.prepare(node.server.layout, superuser_password=node.server.superuser_password)

        assert node.set_up() == []
        assert (node.server.layout.data / "pg_hba.conf").stat() == before

    @pytest.mark.anyio
    async def test_what_was_committed_survives_a_kill(self, node: Node) -> None:
        await execute(node.server.dsn("postgres"), "CREATE TABLE kept AS SELECT 42 AS n")

        node.kill()
        node.start()

        rows = await fetch(node.server.dsn("postgres"), "SELECT n FROM public.kept")
        assert [row["n"] for row in rows] == [42]

    def test_a_lock_file_that_names_another_program_does_not_block_the_start(self, node: Node) -> None:
        node.kill()
        lock = node.server.layout.data / "postmaster.pid"
        lines = lock.read_text().split("\n")
        # PostgreSQL takes only its own user's processes for a server that may still run.
        user = embedded.os_user()
        stranger = subprocess.Popen(["sleep", "60"], user=user)
        try:
            lock.write_text("\n".join([str(stranger.pid), *lines[1:]]))

            node.start()

            assert embedded.is_ready(node.server.port)
        finally:
            stranger.kill()
            stranger.wait(10)

    def test_preparing_a_running_server_does_not_disturb_it(self, node: Node) -> None:
        embedded.prepare(node.server.layout, superuser_password="another")

        assert (node.server.layout.data / "postmaster.pid").exists()
        assert embedded.is_ready(node.server.port)

    def test_destroying_leaves_nothing(self, tmp_path: Path) -> None:
        made = Node(tmp_path / "postgres")
        made.start()
        layout = made.server.layout
        bystander = tmp_path / "mine.txt"
        bystander.write_text("not yours")

        made.end()

        assert embedded.server_process(layout) is None
        assert not embedded.is_ready(made.server.port)
        assert not layout.data.exists()
        assert not layout.state.exists()
        assert not layout.home.exists()
        assert bystander.exists()
        assert not embedded.stop(layout)

    def test_a_port_where_nobody_listens_is_not_ready(self) -> None:
        port = free_port()

        assert not embedded.is_ready(port)
        with pytest.raises(Unavailable):
            embedded.wait_ready(port, timeout=0)

    def test_a_home_too_deep_for_a_socket_does_without(self, tmp_path: Path) -> None:
        short = embedded.server_command(embedded.Layout(tmp_path), 5433)
        layout = embedded.Layout(tmp_path / ("x" * 100))
        deep = embedded.server_command(layout, 5433)

        assert f"unix_socket_directories={embedded.Layout(tmp_path).sockets}" in short
        expected = "" if layout.state == layout.home else str(layout.sockets)
        assert f"unix_socket_directories={expected}" in deep


class TestVerifier:
    def test_a_verifier_verifies_its_password_only(self) -> None:
        stored = verifier_of("correct horse", salt=b"0123456789abcdef")

        assert verifies(stored, "correct horse")
        assert not verifies(stored, "correct horsf")
        assert not verifies("md5abcdef", "correct horse")

    @pytest.mark.parametrize("password", ["", "naïve", "tab\there"])
    def test_passwords_that_clients_prepare_differently_are_refused(self, password: str) -> None:
        with pytest.raises(InvalidArgument):
            verifier_of(password, salt=b"0123456789abcdef")

    def test_the_passwords_do_not_show(self) -> None:
        assert "secret" not in repr(RolePasswords(owner="secret", app="secret", admin="secret"))
