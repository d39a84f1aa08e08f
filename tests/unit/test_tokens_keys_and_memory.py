"""API keys, the issuer's key file, and what the verifier remembers."""

import asyncio
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from adapters.token_auth import keys
from adapters.token_auth.issuer import generate_key, jwks, key_id, load_key
from adapters.token_auth.verifier import SPEC, VerifierConfig
from conformance.clock import ManualClock
from conformance.people import ACME, GLOBEX, PLATFORM
from ports.adapter import Given
from ports.errors import InvalidArgument, PermissionDenied, Unauthenticated
from ports.ids import KeyId
from ports.recent import Recent
from tests.support.tokens import TokenNode, token_node

ID = KeyId("key_" + "0123456789abcdef" * 2)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[TokenNode]:
    async with token_node(tmp_path) as opened:
        yield opened


def test_a_key_comes_apart_into_what_it_was_made_of() -> None:
    secret = keys.new_secret()

    parsed = keys.parse(keys.render("demo", ID, secret))

    assert parsed is not None
    assert (parsed.env, parsed.key_id, parsed.secret) == ("demo", ID, secret)
    assert secret not in repr(parsed)


def test_secrets_have_256_bits_and_differ() -> None:
    made = {keys.new_secret() for _ in range(100)}

    assert len(made) == 100
    assert {len(bytes.fromhex(secret)) for secret in made} == {32}


@pytest.mark.parametrize(
    "text",
    ["", "aos_", "aos_demo_0_0", "aos_demo_" + "g" * 32 + "_" + "0" * 64, "aos_DEMO_" + "0" * 32 + "_" + "0" * 64,
     "aos__" + "0" * 32 + "_" + "0" * 64, "aos_demo_" + "0" * 32 + "_" + "0" * 63,
     "aos_demo_" + "0" * 32 + "_" + "0" * 64 + "\n"],
)  # fmt: skip
def test_what_is_no_key_is_not_taken_for_one(text: str) -> None:
    assert keys.parse(text) is None


def test_a_key_of_another_form_can_not_be_made() -> None:
    for env, key_id_ in (("Demo", ID), ("", ID), ("demo", KeyId("key_1"))):
        with pytest.raises(InvalidArgument):
            keys.render(env, key_id_, keys.new_secret())


def test_the_issuers_key_file_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"

    key = generate_key(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_id(load_key(path)) == key_id(key)
    with pytest.raises(FileExistsError):
        generate_key(path)


def test_a_key_file_open_to_others_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    exposed, garbage, other = tmp_path / "exposed.pem", tmp_path / "garbage.pem", tmp_path / "other.pem"
    generate_key(exposed)
    exposed.chmod(0o640)
    garbage.write_text("not a key")
    garbage.chmod(0o600)
    other.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    other.chmod(0o600)

    for path in (exposed, garbage, other, tmp_path / "missing.pem"):
        with pytest.raises(InvalidArgument):
            load_key(path)


def test_the_published_keys_hold_nothing_private(tmp_path: Path) -> None:
    [published] = jwks(generate_key(tmp_path / "key.pem"))["keys"]

    assert set(published) == {"kty", "crv", "x", "kid", "alg", "use"}


def test_what_is_remembered_is_bounded_in_time_and_number() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1, until=10)
    recent.put("b", 2, until=10)

    assert recent.get("a", 9.9) == 1
    recent.put("c", 3, until=10)

    assert recent.get("b", 9.9) is None
    assert recent.get("a", 10) is None
    assert len(recent) == 1


@pytest.mark.anyio
class TestMemory:
    async def test_within_the_memory_the_directory_is_asked_once(self, node: TokenNode) -> None:
        token, _ = await node.api_key()

        for _ in range(5):
            await node.verifier.verify(token)

        assert node.directory.asked == 1

    async def test_of_many_at_once_one_asks_for_all_and_the_next_one_when_it_leaves(
        self, node: TokenNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token, _ = await node.api_key()
        find, open_ = node.directory.find_key, asyncio.Event()

        async def slowly(*key: Any) -> Any:
            found = await find(*key)
            await open_.wait()
            return found

        monkeypatch.setattr(node.directory, "find_key", slowly)
        waiting = [asyncio.create_task(node.verifier.verify(token)) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        open_.set()

        found = await asyncio.gather(*waiting[1:])

        assert {auth.tenant for auth in found} == {ACME.tenant}
        assert node.directory.asked == 2

    async def test_a_token_in_use_is_asked_about_ahead_of_need_and_nobody_waits(
        self, node: TokenNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token, stored = await node.api_key()
        await node.verifier.verify(token)
        find, open_, asked = node.directory.find_key, asyncio.Event(), asyncio.Event()

        async def slowly(*key: Any) -> Any:
            await open_.wait()
            asked.set()
            return await find(*key)

        monkeypatch.setattr(node.directory, "find_key", slowly)
        await node.advance(timedelta(seconds=1))

        for _ in range(3):
            assert (await node.verifier.verify(token)).tenant == ACME.tenant
        await node.tenants.revoke_key(ACME, stored.id)
        open_.set()
        async with asyncio.timeout(5):
            await asked.wait()
        await asyncio.sleep(0)

        # What is found out counts at once, not when the memory ends.
        with pytest.raises(Unauthenticated):
            await node.verifier.verify(token)
        assert node.directory.asked == 2

    async def test_what_is_asked_anew_and_is_the_same_is_the_same_object(self, node: TokenNode) -> None:
        token, _ = await node.api_key()
        first = await node.verifier.verify(token)
        asked = node.directory.asked

        await node.advance(timedelta(seconds=1.5))
        await node.verifier.verify(token)
        async with asyncio.timeout(5):
            while node.directory.asked == asked:  # noqa: ASYNC110 - it is asked beside
                await asyncio.sleep(0)
        await node.advance(timedelta(seconds=1))

        assert await node.verifier.verify(token) is first

    async def test_refusals_are_remembered_too_and_end_as_soon(self, node: TokenNode) -> None:
        token, _ = await node.api_key()
        await node.tenants.set_status(PLATFORM, ACME.tenant, "disabled")
        for _ in range(3):
            with pytest.raises(PermissionDenied):
                await node.verifier.verify(token)
        assert node.directory.asked == 1

        await node.tenants.set_status(PLATFORM, ACME.tenant, "active")
        await node.advance(timedelta(seconds=5))

        assert (await node.verifier.verify(token)).tenant == ACME.tenant

    async def test_a_revoked_key_is_refused_within_five_seconds(self, node: TokenNode) -> None:
        token, stored = await node.api_key()
        await node.verifier.verify(token)
        await node.tenants.revoke_key(ACME, stored.id)

        await node.advance(timedelta(seconds=5))

        with pytest.raises(Unauthenticated):
            await node.verifier.verify(token)

    async def test_no_memory_outlives_the_token_itself(self, node: TokenNode) -> None:
        token, _ = await node.api_key(expires_at=node.clock.now() + timedelta(seconds=1))
        await node.verifier.verify(token)

        await node.advance(timedelta(seconds=1))

        with pytest.raises(Unauthenticated):
            await node.verifier.verify(token)

    async def test_an_outage_is_not_remembered(self, node: TokenNode) -> None:
        token, _ = await node.api_key()
        node.directory.broken = True
        with pytest.raises(Exception, match="does not answer"):
            await node.verifier.verify(token)

        node.directory.broken = False

        assert (await node.verifier.verify(token)).tenant == ACME.tenant

    async def test_invented_tokens_push_no_good_one_out(self, node: TokenNode) -> None:
        token, _ = await node.api_key()
        await node.verifier.verify(token)
        for number in range(10_000):
            with pytest.raises(Unauthenticated):
                await node.verifier.verify(f"invented.{number}.token")
        asked = node.directory.asked

        await node.verifier.verify(token)

        assert node.directory.asked == asked

    async def test_a_key_speaks_for_the_tenant_it_was_issued_to(self, node: TokenNode) -> None:
        token, _ = await node.api_key(GLOBEX)

        assert (await node.verifier.verify(token)).tenant == GLOBEX.tenant

    async def test_a_memory_longer_than_five_seconds_is_refused(self, tmp_path: Path) -> None:
        config = VerifierConfig(issuer="i", audience="a", jwks_file=str(tmp_path / "x"), cache_seconds=5.1)

        with pytest.raises(InvalidArgument):
            async with SPEC.open(config, Given(clock=ManualClock(), ports={"tenant": None})):
                pytest.fail("opened")
