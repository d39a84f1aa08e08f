"""The secret manager's adapter against a server that answers as the API is documented: tokens, leases, seals, TLS."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import pytest

from adapters import kv_secrets
from adapters.kv_secrets import KvSecretsConfig, check_config
from conformance.clock import ManualClock
from conformance.people import ACME
from conformance.secrets import texts_of
from ports.adapter import Given
from ports.errors import AgentOSError, InvalidArgument, NotFound, Unavailable
from ports.secrets import SecretsPort
from tests.support.kv_server import KvServer, Lease, kv_serving
from tests.support.pki import new_authority

CANARY: Final = "sk-canary-2b9d"
TOKEN: Final = "hvs.canary-token"
SECRET_ID: Final = "canary-secret-id"

pytestmark = pytest.mark.anyio


def written(place: Path, text: str, mode: int = 0o600) -> str:
    place.write_text(text)
    place.chmod(mode)
    return str(place)


@pytest.fixture
async def server() -> AsyncIterator[KvServer]:
    async with kv_serving(KvServer()) as server:
        server.put("provider", {"value": CANARY})
        server.tokens[TOKEN] = Lease()
        with anyio.fail_after(30):
            yield server


@asynccontextmanager
async def opened(
    server: KvServer, home: Path, *, clock: ManualClock | None = None, **more: Any
) -> AsyncIterator[SecretsPort]:
    if not {"token_file", "approle_file"} & more.keys():
        more["token_file"] = written(home / "token", TOKEN)
    config = KvSecretsConfig(url=server.url, **more)
    async with kv_secrets.SPEC.open(config, Given(clock=clock or ManualClock())) as port:
        yield port


async def refusal_of(port: SecretsPort, name: str = "provider") -> AgentOSError:
    with pytest.raises(AgentOSError) as refusal:
        await port.read(ACME, name)
    said = texts_of(refusal.value)
    assert not any(canary in said for canary in (CANARY, TOKEN, SECRET_ID)), said
    return refusal.value


class TestReading:
    async def test_a_value_is_given_again_for_some_seconds_and_then_asked_for(
        self, server: KvServer, tmp_path: Path
    ) -> None:
        clock = ManualClock()
        async with opened(server, tmp_path, clock=clock) as port:
            first = await port.read(ACME, "provider")
            server.put("provider", {"value": "another"})
            again = await port.read(ACME, "provider")
            await clock.advance(timedelta(seconds=5))
            later = await port.read(ACME, "provider")

        assert (first.reveal(), again.reveal(), later.reveal()) == (CANARY, CANARY, "another")
        assert (first.version, later.version) == ("1", "2")

    async def test_a_namespace_a_mount_and_a_prefix_are_where_it_reads(self, server: KvServer, tmp_path: Path) -> None:
        server.mount = "kv/team"
        server.put("agentos/provider", {"value": "elsewhere"}, namespace="ns1/ns2")

        async with opened(server, tmp_path, mount="kv/team", prefix="agentos", namespace="ns1/ns2") as port:
            found = await port.read(ACME, "provider")

        assert found.reveal() == "elsewhere"
        assert server.seen[-1][1] == "kv/team/data/agentos/provider"

    @pytest.mark.parametrize("how", ["deleted", "destroyed"])
    async def test_a_version_that_is_gone_is_not_found(self, server: KvServer, tmp_path: Path, how: str) -> None:
        server.put("provider", {"value": "another"})
        if how == "deleted":
            server.delete("provider")
        else:
            server.secrets["", "provider"][-1].destroyed = True

        async with opened(server, tmp_path) as port:
            assert isinstance(await refusal_of(port), NotFound)
            assert (await port.read(ACME, "provider@1")).reveal() == CANARY

    async def test_one_that_is_to_be_deleted_some_day_is_there(self, server: KvServer, tmp_path: Path) -> None:
        server.secrets["", "provider"][-1].deletion_time = ""
        raw = {"data": {"data": {"value": CANARY}, "metadata": {"version": 1, "deletion_time": "2099-01-01T00:00:00Z"}}}
        async with opened(server, tmp_path) as port:
            await port.read(ACME, "provider")
            server.replaced = (200, json.dumps(raw).encode())

            assert (await port.read(ACME, "provider#value")).reveal() == CANARY

    @pytest.mark.parametrize("value", [7, None, True, {"a": "b"}, ["a"]])
    async def test_a_value_that_is_not_text_is_refused(self, server: KvServer, tmp_path: Path, value: object) -> None:
        server.put("provider", {"value": value})

        async with opened(server, tmp_path) as port:
            assert isinstance(await refusal_of(port), InvalidArgument | NotFound)


class TestFailing:
    @pytest.mark.parametrize("status", [307, 429, 472, 500, 502, 503])
    async def test_whatever_is_no_answer_is_unavailable(self, server: KvServer, tmp_path: Path, status: int) -> None:
        async with opened(server, tmp_path) as port:
            server.replaced = (status, b'{"errors": ["x"]}')
            refusal = await refusal_of(port)

        assert (type(refusal), refusal.code) == (Unavailable, "unavailable")

    @pytest.mark.parametrize(
        "raw",
        [b"", b"[]", b"{", b"<html>", b'{"data": null}', b'{"data": {"data": {"value": "x"}}}', b'{"data": []}',
         b'{"data": {"data": {"value": "x"}, "metadata": {"version": "1"}}}', b"7" * 300_000],
    )  # fmt: skip
    async def test_an_answer_of_another_shape_is_unavailable(
        self, server: KvServer, tmp_path: Path, raw: bytes
    ) -> None:
        async with opened(server, tmp_path) as port:
            await port.read(ACME, "provider")
            server.replaced = (200, raw)
            refusal = await refusal_of(port, "provider@1")

        assert isinstance(refusal, Unavailable)

    async def test_a_sealed_server_says_so_and_nothing_older_is_given(self, server: KvServer, tmp_path: Path) -> None:
        clock = ManualClock()
        async with opened(server, tmp_path, clock=clock) as port:
            await port.read(ACME, "provider")
            server.sealed = True
            await clock.advance(timedelta(seconds=5))
            refusal = await refusal_of(port)
            server.sealed = False
            again = await port.read(ACME, "provider")

        assert "unseal" in refusal.message
        assert refusal.retryable
        assert again.reveal() == CANARY

    async def test_a_server_that_never_answers_is_given_up(self, server: KvServer, tmp_path: Path) -> None:
        server.silent = True

        async with opened(server, tmp_path, timeout_s=0.1) as port:
            refusal = await refusal_of(port)

        assert "0.1 s" in refusal.message

    async def test_a_server_that_is_not_there_is_unavailable(self, tmp_path: Path) -> None:
        async with kv_serving(KvServer()) as gone:
            pass

        async with opened(gone, tmp_path) as port:
            assert isinstance(await refusal_of(port), Unavailable)

    async def test_no_proxy_of_the_environment_sees_the_token(
        self, server: KvServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with kv_serving(KvServer()) as proxy:
            for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(variable, proxy.url)
            async with opened(server, tmp_path) as port:
                await port.read(ACME, "provider")

        assert proxy.seen == []


class TestTokens:
    async def test_a_token_that_was_replaced_in_its_file_is_taken_up_at_once(
        self, server: KvServer, tmp_path: Path
    ) -> None:
        clock = ManualClock()
        async with opened(server, tmp_path, clock=clock) as port:
            await port.read(ACME, "provider")
            del server.tokens[TOKEN]
            server.tokens["hvs.new"] = Lease()
            written(tmp_path / "token", "hvs.new\n")
            await clock.advance(timedelta(seconds=5))

            assert (await port.read(ACME, "provider")).reveal() == CANARY

    async def test_what_the_token_may_not_read_is_refused_and_not_retried_for_ever(
        self, server: KvServer, tmp_path: Path
    ) -> None:
        server.tokens[TOKEN] = Lease(below="others/")

        async with opened(server, tmp_path) as port:
            refusal = await refusal_of(port)

        assert (refusal.code, refusal.retryable) == ("upstream_auth_error", False)
        assert sum(path.endswith("data/provider") for _, path, _ in server.seen) == 2

    async def test_a_token_is_renewed_before_it_ends(self, server: KvServer, tmp_path: Path) -> None:
        server.tokens[TOKEN] = Lease(ttl=60, renewable=True)
        clock = ManualClock()
        async with opened(server, tmp_path, clock=clock, fresh_s=0) as port:
            for _ in range(4):
                await port.read(ACME, "provider")
                await clock.advance(timedelta(seconds=20))

        renewals = [path for _, path, _ in server.seen if path.endswith("renew-self")]
        assert len(renewals) == 1

    async def test_a_renewal_that_fails_ends_nothing_while_the_token_works(
        self, server: KvServer, tmp_path: Path
    ) -> None:
        server.tokens[TOKEN] = Lease(ttl=60, renewable=True)
        clock = ManualClock()
        async with opened(server, tmp_path, clock=clock, fresh_s=0) as port:
            await port.read(ACME, "provider")
            server.tokens[TOKEN].renewable = False
            await clock.advance(timedelta(seconds=50))

            assert (await port.read(ACME, "provider")).reveal() == CANARY

    async def test_an_approle_logs_in_and_again_when_its_token_is_over(self, server: KvServer, tmp_path: Path) -> None:
        server.roles["role"] = (SECRET_ID, Lease(ttl=60))
        role = written(tmp_path / "role", json.dumps({"role_id": "role", "secret_id": SECRET_ID}))
        clock = ManualClock()
        async with opened(server, tmp_path, clock=clock, approle_file=role, fresh_s=0) as port:
            await port.read(ACME, "provider")
            await port.read(ACME, "provider")
            assert server.logins == 1
            await clock.advance(timedelta(seconds=61))
            await port.read(ACME, "provider")
            assert server.logins == 2
            server.tokens.clear()
            await port.read(ACME, "provider")

        assert server.logins == 3

    async def test_many_readers_log_in_once(self, server: KvServer, tmp_path: Path) -> None:
        server.roles["role"] = (SECRET_ID, Lease(ttl=60))
        role = written(tmp_path / "role", json.dumps({"role_id": "role", "secret_id": SECRET_ID}))
        async with opened(server, tmp_path, approle_file=role, fresh_s=0) as port, anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(port.read, ACME, "provider")

        assert server.logins == 1

    async def test_a_login_that_is_refused_says_so_without_what_it_logged_in_with(
        self, server: KvServer, tmp_path: Path
    ) -> None:
        server.roles["role"] = ("another", Lease())
        role = written(tmp_path / "role", json.dumps({"role_id": "role", "secret_id": SECRET_ID}))

        async with opened(server, tmp_path, approle_file=role) as port:
            refusal = await refusal_of(port)

        assert refusal.code == "upstream_auth_error"

    @pytest.mark.parametrize(
        ("text", "mode"),
        [("", 0o600), (TOKEN, 0o644), (TOKEN, 0o640), ("a\x00b", 0o600)],
    )
    async def test_a_token_file_that_is_empty_or_open_to_others_is_refused(
        self, server: KvServer, tmp_path: Path, text: str, mode: int
    ) -> None:
        token = written(tmp_path / "token", text, mode)

        async with opened(server, tmp_path, token_file=token) as port:
            assert isinstance(await refusal_of(port), InvalidArgument)

        assert server.seen == []

    @pytest.mark.parametrize("text", ["x", "{}", '{"role_id": "a"}', '{"role_id": 1, "secret_id": "b"}', SECRET_ID])
    async def test_a_role_file_of_another_shape_is_refused(self, server: KvServer, tmp_path: Path, text: str) -> None:
        role = written(tmp_path / "role", text)

        async with opened(server, tmp_path, approle_file=role) as port:
            assert isinstance(await refusal_of(port), InvalidArgument)


class TestTls:
    async def test_the_servers_certificate_is_checked_against_the_authority_that_is_named(self, tmp_path: Path) -> None:
        authority = new_authority(tmp_path)
        async with kv_serving(KvServer(), tls=authority.server("localhost")) as server:
            server.put("provider", {"value": CANARY})
            server.tokens[TOKEN] = Lease()
            async with opened(server, tmp_path, ca_file=authority.file) as port:
                assert (await port.read(ACME, "provider")).reveal() == CANARY
            async with opened(server, tmp_path) as port:
                before = len(server.seen)
                assert isinstance(await refusal_of(port), Unavailable)

        assert len(server.seen) == before


@pytest.mark.parametrize(
    "config",
    [
        {"url": "http://vault.example:8200"}, {"url": "ftp://x"}, {"url": "vault"}, {"url": "https://u:p@vault"},
        {"url": "https://vault/v1"}, {"url": "https://vault?x=1"}, {"url": "https://vault:0"}, {"url": "https://[::1"},
        {"url": "https://vault", "approle_file": "b"}, {"url": "https://vault", "token_file": ""},
    ],
)  # fmt: skip
def test_a_configuration_that_can_not_be_meant_is_refused(config: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        check_config(msgspec.convert({"token_file": "a", **config}, KvSecretsConfig))

    assert "u:p" not in refusal.value.message


@pytest.mark.parametrize("path", ["../sys", "a/../b", "/a", "a//b", "a b", "a?b", ""])
def test_mount_and_prefix_can_not_lead_elsewhere(path: str) -> None:
    for member in ("mount", "prefix", "approle_mount"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"url": "https://v", "token_file": "t", member: path}, KvSecretsConfig)
