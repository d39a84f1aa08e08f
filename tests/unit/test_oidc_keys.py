"""How a trusted issuer's keys are found: over TLS, through the guard, seldom, and never for longer than they may be."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, cast

import anyio.lowlevel
import jwt as pyjwt
import pytest

from adapters.token_auth.remote_keys import FRESH_SECONDS, KEPT_SECONDS, REFETCH_SECONDS, RemoteKeys
from adapters.token_auth.trust import TrustedIssuer
from conformance.clock import ManualClock
from ports.egress import EgressPort, Fetched
from ports.errors import Unauthenticated, Unavailable
from tests.support.http_origin import answer
from tests.support.oidc import DISCOVERY, JWKS, OidcIssuer, TrustingNode, new_key, public_jwk, trusted, trusting_node

LATER = timedelta(seconds=REFETCH_SECONDS)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[TrustingNode]:
    async with trusting_node(tmp_path) as opened:
        yield opened


@pytest.mark.anyio
class TestFetching:
    async def test_many_tokens_cost_one_fetch(self, node: TrustingNode) -> None:
        await asyncio.gather(*(node.verifier.verify(node.issuer.token()) for _ in range(20)))

        assert (node.issuer.fetches(DISCOVERY), node.issuer.fetches(JWKS)) == (1, 1)

    async def test_a_token_that_is_wrong_anyway_sends_nobody_anywhere(self, node: TrustingNode) -> None:
        for token in (
            node.issuer.token(aud="x"),
            node.issuer.token(org="globex"),
            node.issuer.token(iss="https://x.example"),
        ):
            with pytest.raises(Unauthenticated):
                await node.verifier.verify(token)

        assert node.issuer.origin.requests == []

    async def test_a_new_key_is_found_at_once_and_then_no_oftener_than_it_may(self, node: TrustingNode) -> None:
        await node.verifier.verify(node.issuer.token())
        await node.clock.advance(LATER)
        node.issuer.add("second")

        assert await node.verifier.verify(node.issuer.token())
        assert node.issuer.fetches(JWKS) == 2
        key, _ = node.issuer.keys["second"]
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await node.verifier.verify(node.issuer.token(kid=f"made-up-{number}", key=key))
        assert node.issuer.fetches(JWKS) == 2
        await node.clock.advance(LATER)
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await node.verifier.verify(node.issuer.token(kid=f"made-up-{number}", key=key))
        assert node.issuer.fetches(JWKS) == 3

    async def test_a_key_taken_away_ends_with_the_freshness_and_nobody_waits_for_that(self, node: TrustingNode) -> None:
        token = node.issuer.token(exp=int(node.clock.now().timestamp()) + 3_600)
        await node.verifier.verify(token)
        node.issuer.add("second")
        node.issuer.remove("first")
        await node.clock.advance(timedelta(seconds=FRESH_SECONDS - 1))
        assert await node.verifier.verify(token)
        assert node.issuer.fetches(JWKS) == 1

        await node.clock.advance(timedelta(seconds=1))
        assert await node.verifier.verify(token), "fetched meanwhile"

        async def refused() -> bool:
            try:
                await node.verifier.verify(token)
            except Unauthenticated:
                return True
            return False

        async with asyncio.timeout(10):
            while not await refused():
                await anyio.lowlevel.checkpoint()
        assert node.issuer.fetches(JWKS) == 2

    async def test_an_issuer_that_is_gone_is_believed_for_a_bounded_time(self, node: TrustingNode) -> None:
        token = node.issuer.token(exp=int(node.clock.now().timestamp()) + 3_600)
        await node.verifier.verify(token)
        node.issuer.answers[DISCOVERY] = answer(b"", status="503 Gone")

        await node.clock.advance(timedelta(seconds=KEPT_SECONDS - 1))
        assert await node.verifier.verify(token)
        await node.clock.advance(timedelta(seconds=1 + REFETCH_SECONDS))
        with pytest.raises(Unavailable):
            await node.verifier.verify(token)

    async def test_a_failure_is_remembered_for_a_while_and_then_over(self, node: TrustingNode) -> None:
        good = node.issuer.answers[DISCOVERY]
        node.issuer.answers[DISCOVERY] = answer(b"", status="503 Gone")
        for _ in range(20):
            with pytest.raises(Unavailable) as refusal:
                await node.verifier.verify(node.issuer.token())
        assert node.issuer.fetches(DISCOVERY) == 1
        assert refusal.value.retry_after == LATER

        node.issuer.answers[DISCOVERY] = good
        await node.clock.advance(LATER)
        assert await node.verifier.verify(node.issuer.token())

    async def test_an_unknown_key_of_an_issuer_that_can_not_be_asked_is_no_verdict(self, node: TrustingNode) -> None:
        await node.verifier.verify(node.issuer.token())
        key = node.issuer.add("second")
        node.issuer.answers[JWKS] = answer(b"", status="503 Gone")
        await node.clock.advance(LATER)

        for _ in range(2):
            with pytest.raises(Unavailable):
                await node.verifier.verify(node.issuer.token(kid="second", key=key))
        assert await node.verifier.verify(node.issuer.token(kid="first"))

    async def test_whoever_leaves_does_not_take_the_fetch_along(self, node: TrustingNode) -> None:
        first = asyncio.create_task(node.verifier.verify(node.issuer.token()))
        second = asyncio.create_task(node.verifier.verify(node.issuer.token()))
        await asyncio.sleep(0)
        first.cancel()

        assert (await second).principal == "acme:ann"

    async def test_an_issuer_without_discovery_is_asked_for_its_keys_only(self, node: TrustingNode) -> None:
        await node.trust(trusted(node.issuer, jwks_uri=node.issuer.jwks_uri))

        assert await node.verifier.verify(node.issuer.token())
        assert (node.issuer.fetches(DISCOVERY), node.issuer.fetches(JWKS)) == (0, 1)


def _two_of_one_kid(issuer: OidcIssuer) -> bytes:
    entries = [public_jwk(*issuer.keys["first"], kid="first") for _ in range(2)]
    return answer(json.dumps({"keys": entries}).encode())


def _many(issuer: OidcIssuer) -> bytes:
    entry = public_jwk(*issuer.keys["first"], kid="first")
    return answer(json.dumps({"keys": [entry, *({"kid": f"k{n}"} for n in range(64))]}).encode())


BAD_JWKS: dict[str, Callable[[OidcIssuer], bytes]] = {
    "an error": lambda _: answer(b"{}", status="500 Oh"),
    "keys in an error": lambda issuer: answer(issuer.answers[JWKS].partition(b"\r\n\r\n")[2], status="404 Gone"),
    "elsewhere": lambda issuer: answer(
        b"", status="302 Found", location=f"https://127.0.0.1:{issuer.origin.port}{JWKS}"
    ),
    "no JSON": lambda _: answer(b"<html>"),
    "no keys": lambda _: answer(b"{}"),
    "keys of another type": lambda _: answer(b'{"keys": {}}'),
    "a member twice": lambda issuer: answer(b'{"keys": [], ' + issuer.answers[JWKS].partition(b"\r\n\r\n")[2][1:]),
    "two keys of one kid": _two_of_one_kid,
    "too many": _many,
    "too large": lambda issuer: answer(issuer.answers[JWKS].partition(b"\r\n\r\n")[2] + b" " * 300_000),
    "nested without end": lambda _: answer(b"[" * 100_000),
}

BAD_DISCOVERY: dict[str, Callable[[OidcIssuer], dict[str, object]]] = {
    "another issuer": lambda _: {"issuer": "https://evil.example"},
    "nearly the issuer": lambda issuer: {"issuer": issuer.url + "/"},
    "no keys": lambda _: {"jwks_uri": None},
    "keys in the clear": lambda issuer: {"jwks_uri": issuer.jwks_uri.replace("https", "http")},
    "keys in a file": lambda _: {"jwks_uri": "file:///etc/passwd"},
    "keys of the cloud": lambda _: {"jwks_uri": "https://169.254.169.254/latest"},
    "keys at home": lambda issuer: {"jwks_uri": f"https://127.0.0.1:{issuer.origin.port}{JWKS}"},
}


@pytest.mark.anyio
class TestFailingClosed:
    @pytest.mark.parametrize("name", BAD_JWKS)
    async def test_keys_that_are_none_are_not_used(self, node: TrustingNode, name: str) -> None:
        node.issuer.answers[JWKS] = BAD_JWKS[name](node.issuer)

        with pytest.raises(Unavailable):
            pytest.fail(f"{name}: accepted as {await node.verifier.verify(node.issuer.token())}")

    @pytest.mark.parametrize("name", BAD_DISCOVERY)
    async def test_a_discovery_that_leads_elsewhere_is_not_followed(self, node: TrustingNode, name: str) -> None:
        node.issuer.publish(**BAD_DISCOVERY[name](node.issuer))

        with pytest.raises(Unavailable):
            pytest.fail(f"{name}: accepted as {await node.verifier.verify(node.issuer.token())}")
        assert node.issuer.fetches(JWKS) == 0

    @pytest.mark.parametrize("changed", [{"use": "enc"}, {"kid": None}, {"kty": "oct"}, {"alg": "HS256"}])
    async def test_an_entry_that_is_no_key_for_signatures_is_none(
        self, node: TrustingNode, changed: dict[str, object]
    ) -> None:
        entry = public_jwk(*node.issuer.keys["first"], kid="first") | changed
        node.issuer.answers[JWKS] = answer(json.dumps({"keys": [entry]}).encode())

        with pytest.raises(Unauthenticated):
            await node.verifier.verify(node.issuer.token())

    async def test_a_private_key_that_was_published_is_none(self, node: TrustingNode) -> None:
        key, alg = node.issuer.keys["first"]
        private = pyjwt.get_algorithm_by_name(alg).to_jwk(key, as_dict=True)
        node.issuer.answers[JWKS] = answer(json.dumps({"keys": [{**private, "kid": "first", "alg": alg}]}).encode())

        with pytest.raises(Unauthenticated):
            await node.verifier.verify(node.issuer.token())

    async def test_a_certificate_for_somebody_else_is_refused(self, node: TrustingNode) -> None:
        # The same server by a name that its certificate doesn't have, and that leads nowhere private but here.
        await node.trust(trusted(node.issuer, jwks_uri=node.issuer.jwks_uri.replace("login.", "other.")))

        with pytest.raises(Unavailable):
            await node.verifier.verify(node.issuer.token())
        assert node.issuer.origin.requests == []

    async def test_an_issuer_that_answers_nothing_is_given_up(self, node: TrustingNode) -> None:
        del node.issuer.answers[JWKS]

        with pytest.raises(Unavailable):
            await node.verifier.verify(node.issuer.token())


class AnswersAnybody:
    """A way out that forbids nothing: what is not asked for, nobody wanted."""

    def __init__(self, documents: dict[str, dict[str, object]]) -> None:
        self._documents = documents
        self.asked: list[str] = []

    async def fetch(self, _: object, url: str, **__: object) -> Fetched:
        self.asked.append(url)
        found = self._documents.get(url)
        return Fetched(status=404) if found is None else Fetched(status=200, body=json.dumps(found).encode())


_ID: Final = "https://id.example"
_FOUND: Final = f"{_ID}/.well-known/openid-configuration"


def _keys_of(jwks_uri: str, *, issuer: str = _ID) -> tuple[RemoteKeys, AnswersAnybody]:
    key: dict[str, object] = {"keys": [public_jwk(new_key("EdDSA"), "EdDSA", kid="first")]}
    discovery: dict[str, object] = {"issuer": issuer, "jwks_uri": jwks_uri}
    out = AnswersAnybody({_FOUND: discovery, jwks_uri: key})
    trust = TrustedIssuer(name="acme", issuer=_ID, tenant="tnt_acme")
    return RemoteKeys(trust, cast("EgressPort", out), ManualClock()), out


@pytest.mark.anyio
@pytest.mark.parametrize(
    "uri",
    [
        "http://id.example/keys", "http://127.0.0.1/keys", "http://localhost:8443/keys", "HTTPS://id.example/keys",
        "//id.example/keys", "/keys", "ftp://id.example/keys", "file:///keys", "",
    ],
)  # fmt: skip
async def test_keys_are_fetched_over_https_whatever_a_discovery_says(uri: str) -> None:
    """Also where the guard would let it pass: whoever is on the way could put keys of their own there."""
    keys, out = _keys_of(uri)

    with pytest.raises(Unavailable):
        await keys.find("first")
    assert out.asked == [_FOUND]


@pytest.mark.anyio
async def test_keys_of_a_discovery_over_https_are_taken_and_another_issuers_are_not() -> None:
    keys, _ = _keys_of("https://keys.example/keys")
    others, out = _keys_of("https://keys.example/keys", issuer="https://evil.example")

    assert await keys.find("first") is not None
    with pytest.raises(Unavailable):
        await others.find("first")
    assert len(out.asked) == 1
