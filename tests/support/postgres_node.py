"""An embedded server of a test's own, with the settings of production: to be killed, stalled and started again."""

import secrets
import subprocess
from pathlib import Path

from adapters.postgres.bootstrap import RolePasswords
from deploy import embedded_postgres as embedded
from tests.support.ports import free_port
from tests.support.postgres import Server


class Node:
    """One embedded server that a test may kill and start again."""

    def __init__(self, home: Path) -> None:
        passwords = RolePasswords(
            owner=secrets.token_hex(8),
            app=secrets.token_hex(8),
            admin=secrets.token_hex(8),
            control=secrets.token_hex(8),
        )
        self.server = Server(
            layout=embedded.Layout(home), port=free_port(), superuser_password=secrets.token_hex(8), passwords=passwords
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        embedded.prepare(self.server.layout, superuser_password=self.server.superuser_password)
        self.process = embedded.start(self.server.layout, self.server.port)
        embedded.wait_ready(self.server.port)

    def set_up(self) -> list[str]:
        admin, owner = self.server.dsn("postgres", "postgres"), self.server.dsn("ao_owner")
        return embedded.set_up_database(admin, owner, self.server.passwords)

    def stop(self) -> None:
        assert self.process is not None
        embedded.stop(self.server.layout)
        self.process.wait(10)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        if self.process is not None:
            self.stop()
        embedded.destroy(self.server.layout)
