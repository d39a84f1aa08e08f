"""The kit over the stores of secrets: in process, a directory of files, and a secret manager over HTTP."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import Struct

from adapters import file_secrets, kv_secrets
from adapters.file_secrets import FileSecretsConfig
from adapters.inproc import secrets as inproc_secrets
from adapters.inproc.store import store
from adapters.kv_secrets import KvSecretsConfig
from conformance.clock import ManualClock
from conformance.secrets import SecretsContract
from ports.adapter import Given
from ports.secrets import SecretsPort
from tests.support.inproc import InprocHarness, closing
from tests.support.kv_server import KvServer, Lease, kv_serving


class InprocSecretsHarness(InprocHarness[SecretsPort]):
    def __init__(self) -> None:
        super().__init__(inproc_secrets.SPEC)

    @property
    def table(self) -> inproc_secrets.Secrets:
        return store(self.config.name).table(inproc_secrets.Secrets)

    async def put(self, name: str, value: str, **fields: str) -> None:
        self.table.put(name, {"value": value, **fields})

    async def remove(self, name: str) -> None:
        self.table.remove(name)

    async def go_away(self) -> None:
        self.table.away = True


class FileSecretsHarness:
    def __init__(self, home: Path, stack: AsyncExitStack) -> None:
        self._directory = home / "secrets"
        self._directory.mkdir(mode=0o700)
        self._stack = stack
        self._config = FileSecretsConfig(directory=str(self._directory))
        self._moments = itertools.count(1_700_000_000)

    @property
    def declared(self) -> Struct:
        return file_secrets.SPEC.capabilities(self._config)

    async def open(self) -> SecretsPort:
        return await self._stack.enter_async_context(file_secrets.SPEC.open(self._config, Given(clock=ManualClock())))

    async def put(self, name: str, value: str, **_fields: str) -> None:
        place = self._directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(value)
        place.chmod(0o600)
        # Two writes within one tick of the file system's clock are none of this test's business.
        moment = next(self._moments)
        os.utime(place, (moment, moment))

    async def remove(self, name: str) -> None:
        (self._directory / name).unlink()

    async def go_away(self) -> None:
        self._directory.rename(self._directory.with_name("elsewhere"))

    async def advance(self, delta: timedelta) -> None:
        pass


class KvSecretsHarness:
    def __init__(self, home: Path, server: KvServer, stack: AsyncExitStack) -> None:
        self._server = server
        self._stack = stack
        self._clock = ManualClock()
        token = home / "token"
        token.write_text("hvs.root")
        token.chmod(0o600)
        server.tokens["hvs.root"] = Lease(below="agentos/")
        self._config = KvSecretsConfig(url=server.url, prefix="agentos", token_file=str(token))

    @property
    def declared(self) -> Struct:
        return kv_secrets.SPEC.capabilities(self._config)

    async def open(self) -> SecretsPort:
        return await self._stack.enter_async_context(kv_secrets.SPEC.open(self._config, Given(clock=self._clock)))

    async def put(self, name: str, value: str, **fields: str) -> None:
        self._server.put(f"agentos/{name}", {"value": value, **fields})

    async def remove(self, name: str) -> None:
        self._server.delete(f"agentos/{name}")

    async def go_away(self) -> None:
        self._server.sealed = True

    async def advance(self, delta: timedelta) -> None:
        await self._clock.advance(delta)


class TestInprocSecrets(SecretsContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[InprocSecretsHarness]:
        async with closing(InprocSecretsHarness()) as harness:
            yield harness


class TestFileSecrets(SecretsContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[FileSecretsHarness]:
        async with AsyncExitStack() as stack:
            yield FileSecretsHarness(tmp_path, stack)


class TestKvSecrets(SecretsContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[KvSecretsHarness]:
        async with kv_serving(KvServer()) as server, AsyncExitStack() as stack:
            yield KvSecretsHarness(tmp_path, server, stack)
