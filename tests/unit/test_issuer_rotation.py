"""The node's own signing key: rotated while everything runs, published, and old ones ending as meant."""

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt as pyjwt
import pytest

from adapters.system_clock import SystemClock
from adapters.token_auth import verifier
from adapters.token_auth.issuer import SPEC, IssuerConfig, generate_key, jwks, key_id, load_key
from adapters.token_auth.published import PublishedFile
from adapters.token_auth.rotation import OVERLAP_SECONDS, ending, living, with_key
from conformance.people import ACME
from deploy import credentials, issuer_keys
from deploy.node import Node
from deploy.seed import ensure_issuer_key
from ports.adapter import Given
from ports.auth import TokenIssuer
from ports.errors import Unauthenticated, Unavailable
from stack_a.app import create_app
from tests.support.cli import agentos
from tests.support.stack_a import stack_a
from tests.support.tokens import AUDIENCE, ISSUER, TokenNode, token_node

SECOND = timedelta(seconds=1)
NOW = 1_893_499_200  # conformance.clock.EPOCH


def empty(home: Path) -> Node:
    return Node(home=home, code=home, env_file=home / ".agentos.env", reports=home / "reports")


def node_at(home: Path) -> Node:
    node = empty(home)
    node.secrets.mkdir(parents=True, mode=0o700)
    ensure_issuer_key(node)
    return node


def minted(issuer: TokenIssuer) -> str:
    return issuer.mint(ACME, audience=AUDIENCE, scopes=ACME.scopes, lifetime=timedelta(hours=1))


@pytest.mark.anyio
class TestRotating:
    @pytest.fixture
    async def rotating(self, tmp_path: Path) -> AsyncIterator[tuple[Node, TokenNode, TokenIssuer]]:
        async with AsyncExitStack() as stack:
            tokens = await stack.enter_async_context(token_node(tmp_path, cache_seconds=0))
            node = empty(tmp_path / "home")
            node.secrets.mkdir(parents=True, mode=0o700)
            # The node's files, which are the verifier's.
            credentials.write_if_changed(node.secret(credentials.ISSUER_KEY), (tmp_path / "issuer.pem").read_text())
            ensure_issuer_key(node)
            given = Given(clock=tokens.clock, ports={"tenant": tokens.directory})
            config = verifier.VerifierConfig(
                issuer=ISSUER, audience=AUDIENCE, jwks_file=str(node.secret(credentials.JWKS)), cache_seconds=0
            )
            tokens.verifier = await stack.enter_async_context(verifier.SPEC.open(config, given))
            issuing = IssuerConfig(issuer=ISSUER, private_key_file=str(node.secret(credentials.ISSUER_KEY)))
            yield node, tokens, await stack.enter_async_context(SPEC.open(issuing, given))

    async def test_what_runs_signs_with_the_new_key_and_takes_what_the_old_one_signed(
        self, rotating: tuple[Node, TokenNode, TokenIssuer]
    ) -> None:
        node, tokens, issuer = rotating
        before = minted(issuer)
        assert await tokens.verifier.verify(before)

        done = issuer_keys.rotate(node, revoke=False, now=NOW)
        await tokens.advance(SECOND)

        after = minted(issuer)
        assert _kid(after) == done.kid != _kid(before)
        assert await tokens.verifier.verify(after)
        assert await tokens.verifier.verify(before)

    async def test_a_token_of_the_new_key_is_taken_at_once(self, rotating: tuple[Node, TokenNode, TokenIssuer]) -> None:
        node, tokens, issuer = rotating
        await tokens.verifier.verify(minted(issuer))

        issuer_keys.rotate(node, revoke=False, now=NOW)
        given = Given(clock=tokens.clock)
        config = IssuerConfig(issuer=ISSUER, private_key_file=str(node.secret(credentials.ISSUER_KEY)))
        async with SPEC.open(config, given) as another:
            assert await tokens.verifier.verify(minted(another)), "though the verifier looked less than a second ago"

    async def test_revoking_refuses_what_was_signed_before(self, rotating: tuple[Node, TokenNode, TokenIssuer]) -> None:
        node, tokens, issuer = rotating
        before = minted(issuer)
        assert await tokens.verifier.verify(before)

        issuer_keys.rotate(node, revoke=True, now=NOW)
        await tokens.advance(SECOND)

        with pytest.raises(Unauthenticated):
            await tokens.verifier.verify(before)
        assert await tokens.verifier.verify(minted(issuer))

    async def test_up_keeps_the_overlap(self, rotating: tuple[Node, TokenNode, TokenIssuer]) -> None:
        node, tokens, issuer = rotating
        before = minted(issuer)
        issuer_keys.rotate(node, revoke=False, now=NOW)

        ensure_issuer_key(node)
        await tokens.advance(SECOND)

        assert await tokens.verifier.verify(before)

    async def test_a_key_that_ended_verifies_no_more(self, rotating: tuple[Node, TokenNode, TokenIssuer]) -> None:
        node, tokens, issuer = rotating
        token = minted(issuer)
        path = node.secret(credentials.JWKS)
        document = json.loads(path.read_bytes())
        document["keys"][0]["exp"] = int(tokens.clock.now().timestamp()) + 2
        path.write_text(json.dumps(document))
        await tokens.advance(SECOND)
        assert await tokens.verifier.verify(token)

        await tokens.advance(SECOND)

        with pytest.raises(Unauthenticated):
            await tokens.verifier.verify(token)

    async def test_an_end_that_is_no_number_is_no_key_set(self, rotating: tuple[Node, TokenNode, TokenIssuer]) -> None:
        node, tokens, issuer = rotating
        path = node.secret(credentials.JWKS)
        document = json.loads(path.read_bytes())
        document["keys"][0]["exp"] = "soon"
        path.write_text(json.dumps(document))
        await tokens.advance(SECOND)

        with pytest.raises(Unavailable):
            await tokens.verifier.verify(minted(issuer))


def _kid(token: str) -> Any:
    return pyjwt.get_unverified_header(token)["kid"]


class TestDocuments:
    def test_the_old_key_ends_when_all_that_it_signed_has_expired(self, tmp_path: Path) -> None:
        old, new = generate_key(tmp_path / "old"), generate_key(tmp_path / "new")

        document = with_key(ending(jwks(old)["keys"], now=NOW), new, now=NOW)

        assert [(one["kid"], one.get("exp")) for one in document["keys"]] == [
            (key_id(new), None),
            (key_id(old), NOW + OVERLAP_SECONDS),
        ]
        assert with_key(document["keys"], new, now=NOW + OVERLAP_SECONDS)["keys"] == jwks(new)["keys"]

    def test_a_second_rotation_makes_no_end_later(self, tmp_path: Path) -> None:
        keys = [generate_key(tmp_path / name) for name in "abc"]
        once = with_key(ending(jwks(keys[0])["keys"], now=NOW), keys[1], now=NOW)

        twice = with_key(ending(once["keys"], now=NOW + 100), keys[2], now=NOW + 100)

        assert {one["kid"]: one.get("exp") for one in twice["keys"]} == {
            key_id(keys[0]): NOW + OVERLAP_SECONDS,
            key_id(keys[1]): NOW + 100 + OVERLAP_SECONDS,
            key_id(keys[2]): None,
        }

    def test_nothing_private_is_ever_published(self, tmp_path: Path) -> None:
        [entry] = jwks(generate_key(tmp_path / "key"))["keys"]

        assert living([{**entry, "d": "secret", "remark": "x"}], now=NOW) == [entry]

    def test_the_discovery_document_leads_to_the_keys(self, tmp_path: Path) -> None:
        key = generate_key(tmp_path / "key")
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**jwks(key)["keys"][0], "d": "secret"}]}))

        published = PublishedFile(tmp_path / "jwks.json", "https://id.example/", SystemClock())

        told = json.loads(published.discovery() or b"")
        assert (told["issuer"], told["jwks_uri"]) == ("https://id.example/", "https://id.example/.well-known/jwks.json")
        assert json.loads(published.jwks()) == jwks(key)
        assert PublishedFile(tmp_path / "jwks.json", "urn:agentos:node", SystemClock()).discovery() is None

    def test_where_there_is_no_node_there_is_nothing_to_rotate(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="agentos up"):
            issuer_keys.rotate(empty(tmp_path), revoke=False, now=NOW)

    def test_a_key_set_that_was_lost_is_made_again_from_the_signing_key(self, tmp_path: Path) -> None:
        node = node_at(tmp_path)
        node.secret(credentials.JWKS).write_text("{")

        assert ensure_issuer_key(node)
        assert json.loads(node.secret(credentials.JWKS).read_bytes()) == jwks(
            load_key(node.secret(credentials.ISSUER_KEY))
        )
        assert not ensure_issuer_key(node)


@pytest.mark.anyio
class TestOverHttp:
    async def test_anybody_may_read_the_keys_and_where_they_are(self, tmp_path: Path) -> None:
        key = generate_key(tmp_path / "key")
        (tmp_path / "jwks.json").write_text(json.dumps(jwks(key)))
        published = PublishedFile(tmp_path / "jwks.json", "https://id.example", SystemClock())
        async with stack_a() as node:
            app = create_app(dataclasses.replace(node.api, published=published))
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="https://evil.example") as client:
                keys = await client.get("/.well-known/jwks.json")
                told = await client.get("/.well-known/openid-configuration")

        assert (keys.status_code, keys.json()) == (200, jwks(key))
        assert told.json()["jwks_uri"] == "https://id.example/.well-known/jwks.json", "never from the Host header"

    async def test_where_nothing_is_published_there_is_nothing(self) -> None:
        async with stack_a() as node:
            for path in ("/.well-known/jwks.json", "/.well-known/openid-configuration"):
                assert (await node.http.get(path)).status_code == 404


def test_the_command_rotates_without_a_database_and_says_that_the_audit_lacks_it(tmp_path: Path) -> None:
    environ = {"AGENTOS_HOME": str(tmp_path / "home")}
    node = node_at(tmp_path / "home")
    before = key_id(load_key(node.secret(credentials.ISSUER_KEY)))

    said = agentos("token", "rotate-key", "--json", environ=environ)

    told = json.loads(said.out)
    assert (said.code, told["kid"]) == (0, key_id(load_key(node.secret(credentials.ISSUER_KEY))))
    assert {one["kid"]: one["until"] is None for one in told["keys"]} == {told["kid"]: True, before: False}
    assert "audit" in said.err
    people = agentos("token", "rotate-key", "--revoke", environ=environ)
    assert told["kid"] not in people.out
    assert "VERIFIES UNTIL" in people.out
