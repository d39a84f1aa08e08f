"""Every rule of access tokens, with a token that breaks this rule and no other."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from adapters.token_auth.issuer import key_id
from adapters.token_auth.jwt import usable_key
from conformance.people import ACME, PLATFORM
from ports.context import PolicyContext
from ports.errors import InvalidArgument, Unauthenticated, Unavailable
from ports.ids import NodeId
from tests.support.tokens import TokenNode, base64url, claims_of, signed, signed_bytes, token_node

NOW = 1_893_499_200  # conformance.clock.EPOCH


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[TokenNode]:
    async with token_node(tmp_path) as opened:
        yield opened


async def assert_refused(node: TokenNode, token: str) -> None:
    with pytest.raises(Unauthenticated):
        pytest.fail(f"accepted as {await node.verifier.verify(token)}")


@pytest.mark.anyio
class TestClaims:
    @pytest.mark.parametrize("claim", ["iss", "aud", "sub", "exp", "iat", "jti", "tenant_id", "scope"])
    async def test_a_required_claim_is_required(self, node: TokenNode, claim: str) -> None:
        await assert_refused(node, node.token(**{claim: ...}))

    @pytest.mark.parametrize(
        "changed",
        [
            {"aud": ["stack-a"]}, {"aud": ["stack-a", "stack-b"]}, {"aud": "stack-b"}, {"aud": ""},
            {"iss": "https://node.example/"}, {"iss": None},
            {"exp": str(NOW + 600)}, {"exp": NOW + 600.5}, {"exp": None}, {"exp": True}, {"exp": 10**30},
            {"iat": str(NOW)}, {"iat": None}, {"nbf": str(NOW)},
            {"tenant_id": ["tnt_acme"]}, {"tenant_id": 7}, {"tenant_id": "acme"}, {"tenant_id": "tnt_x'; --"},
            {"tenant_id": ""}, {"tenant_id": "tnt_nobody"},
            {"home": ""}, {"home": 7}, {"home": "tnt_x'; --"},
            {"sub": ""}, {"sub": 7}, {"sub": "a\nb"}, {"sub": "a" * 256},
            {"jti": ""}, {"jti": 7}, {"scope": ["runs:read"]}, {"scope": None},
            {"namespace": ""}, {"namespace": "../x"}, {"namespace": 7}, {"roles": "admin"}, {"via": "nod_a"},
            {"roles": [""]}, {"roles": ["editor", "a\nb"]}, {"roles": ["a" * 256]},
            {"via": [""]}, {"via": ["nod_a", "a\nb"]}, {"via": ["a" * 256]}, {"policy": "public"},
        ],
    )  # fmt: skip
    async def test_a_claim_of_another_type_or_value_is_refused(
        self, node: TokenNode, changed: dict[str, object]
    ) -> None:
        await assert_refused(node, node.token(**changed))

    @pytest.mark.parametrize("claim", ["tenant_id", "home"])
    @pytest.mark.parametrize(
        "tenant", ["", "tnt_x'; DROP TABLE runs; --", "acme", "TNT_ACME", "tnt_", "tnt_acme\n", "t" * 99]
    )
    async def test_the_directory_is_never_asked_about_what_can_be_no_tenant(
        self, node: TokenNode, claim: str, tenant: str
    ) -> None:
        names = {"home": {"sub": f"{tenant}/svc"}}  # as who acts from there is called
        await assert_refused(node, node.token(**{claim: tenant}, **names.get(claim, {})))

        assert node.directory.asked == 0

    @pytest.mark.parametrize(
        ("issued", "expires", "accepted"),
        [
            (0, 600, True),
            (-600, -59, True),
            (-600, -60, False),
            (60, 660, True),
            (61, 660, False),
            (0, 3_600, True),
            (0, 3_601, False),
            (0, 0, False),
            (30, 20, False),
        ],
    )
    async def test_times_are_held_with_a_minute_of_leeway(
        self, node: TokenNode, issued: int, expires: int, accepted: bool
    ) -> None:
        token = node.token(iat=NOW + issued, exp=NOW + expires)

        if accepted:
            assert (await node.verifier.verify(token)).tenant == ACME.tenant
        else:
            await assert_refused(node, token)

    async def test_a_token_of_the_future_is_refused_until_then(self, node: TokenNode) -> None:
        token = node.token(nbf=NOW + 70)

        await assert_refused(node, token)
        await node.advance(timedelta(seconds=15))

        assert (await node.verifier.verify(token)).tenant == ACME.tenant

    async def test_a_claim_given_twice_is_refused(self, node: TokenNode) -> None:
        claims = json.dumps(claims_of(ACME, node.clock.now()))
        twice = claims[:-1] + ', "tenant_id": "tnt_globex"}'

        await assert_refused(node, signed(node.key, twice.encode()))

    @pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"{", b'{"exp": NaN}', b"\xff", b'"x"', b"[" * 5_000])
    async def test_a_payload_that_is_no_object_is_refused(self, node: TokenNode, payload: bytes) -> None:
        await assert_refused(node, signed(node.key, payload))

    async def test_scopes_that_clients_may_not_hold_are_left_out(self, node: TokenNode) -> None:
        token = node.token(scope="runs:read queue:any-tenant runs:any-tenant made:up  models:invoke")

        assert (await node.verifier.verify(token)).scopes == {"runs:read", "models:invoke"}


@pytest.mark.anyio
class TestHeader:
    @pytest.mark.parametrize(
        "changed",
        [
            {"alg": "none"}, {"alg": "HS256"}, {"alg": "ES256"}, {"alg": "EdDSA "}, {"alg": ...}, {"alg": None},
            {"typ": "JWT"}, {"typ": ...}, {"typ": ""}, {"kid": "unknown"}, {"kid": ...}, {"kid": 7}, {"kid": ""},
            {"jku": "https://evil.example/jwks"}, {"x5u": "https://evil.example/x"}, {"jwk": {"kty": "OKP"}},
            {"x5c": ["MIIB"]}, {"crit": ["exp"]}, {"crit": []}, {"b64": False}, {"zip": "DEF"},
        ],
    )  # fmt: skip
    async def test_a_header_with_anything_odd_is_refused(self, node: TokenNode, changed: dict[str, object]) -> None:
        await assert_refused(node, signed(node.key, claims_of(ACME, node.clock.now()), **changed))

    @pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
    async def test_the_type_is_a_media_type(self, node: TokenNode, typ: str) -> None:
        token = signed(node.key, claims_of(ACME, node.clock.now()), typ=typ)

        assert (await node.verifier.verify(token)).tenant == ACME.tenant

    async def test_a_header_member_given_twice_is_refused(self, node: TokenNode) -> None:
        kid = key_id(node.key)
        header = f'{{"alg":"none","alg":"EdDSA","kid":"{kid}","typ":"at+jwt"}}'.encode()

        await assert_refused(node, signed_bytes(node.key, header, claims_of(ACME, node.clock.now())))

    async def test_a_key_carried_by_the_token_itself_is_not_trusted(self, node: TokenNode) -> None:
        own = Ed25519PrivateKey.generate()

        await assert_refused(node, signed(own, claims_of(ACME, node.clock.now())))

    async def test_a_signature_that_is_padded_or_cut_is_refused(self, node: TokenNode) -> None:
        token = node.token()

        for forged in (token[:-1], token[:-2], token + "A", token.rpartition(".")[0] + ".", token + ".x", token + " "):
            await assert_refused(node, forged)


@pytest.mark.anyio
class TestKeySet:
    async def test_other_issuers_algorithms_are_verified_with_keys_of_their_kind(self, node: TokenNode) -> None:
        made: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] = {
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "RS256": rsa.generate_private_key(65_537, 2_048),
        }
        published = [{**public_jwk(alg, key), "kid": alg} for alg, key in made.items()]
        node.jwks_file.write_text(json.dumps({"keys": published}))

        for alg, key in made.items():
            claims = claims_of(ACME, node.clock.now())
            token = pyjwt.encode(claims, key, algorithm=alg, headers={"kid": alg, "typ": "at+jwt"})
            assert (await node.verifier.verify(token)).tenant == ACME.tenant

    async def test_a_key_taken_out_stops_verifying_and_a_new_one_starts(self, node: TokenNode) -> None:
        old = node.token()
        await node.verifier.verify(old)
        key = Ed25519PrivateKey.generate()
        public = base64url(key.public_key().public_bytes_raw())
        node.jwks_file.write_text(
            json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": public, "kid": key_id(key)}]})
        )
        await node.advance(timedelta(seconds=5))

        await assert_refused(node, old)
        assert (await node.verifier.verify(signed(key, claims_of(ACME, node.clock.now())))).tenant == ACME.tenant

    @pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"keys": 7}', '{"keys": [', "\x00"])
    async def test_a_key_set_that_can_not_be_read_is_unavailable(self, node: TokenNode, content: str | None) -> None:
        if content is None:
            node.jwks_file.unlink()
        else:
            node.jwks_file.write_text(content)

        with pytest.raises(Unavailable):
            await node.verifier.verify(node.token())

    async def test_keys_we_do_not_trust_are_skipped(self, node: TokenNode) -> None:
        known = json.loads(node.jwks_file.read_text())["keys"]
        odd = [7, {}, {"kid": 7}, {"kid": "a", "kty": "oct", "k": "AAAA"}, {"kid": "b", "kty": "EC", "crv": "P-256"}]
        node.jwks_file.write_text(json.dumps({"keys": odd + known}))

        assert (await node.verifier.verify(node.token())).tenant == ACME.tenant


def public_jwk(alg: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> dict[str, Any]:
    jwk: dict[str, Any] = pyjwt.get_algorithm_by_name(alg).to_jwk(key.public_key(), as_dict=True)
    return jwk


def test_weak_symmetric_foreign_and_encryption_keys_are_not_usable() -> None:
    weak = public_jwk("RS256", rsa.generate_private_key(65_537, 1_024))  # noqa: S505  # weak is what it is about
    p384 = public_jwk("ES384", ec.generate_private_key(ec.SECP384R1()))
    ed = {"kty": "OKP", "crv": "Ed25519", "x": base64url(Ed25519PrivateKey.generate().public_key().public_bytes_raw())}

    assert usable_key(ed) is not None
    for unusable in (
        weak,
        p384,
        {"kty": "oct", "k": "AAAA"},
        {**ed, "use": "enc"},
        {**ed, "alg": "HS256"},
        {**ed, "x": "AA"},
        {},
    ):
        assert usable_key(unusable) is None


@pytest.mark.anyio
class TestIssuer:
    async def test_a_minted_token_carries_everything_that_narrows_its_context(self, node: TokenNode) -> None:
        auth = replace(
            ACME,
            roles=frozenset({"editor"}),
            namespace="lab",
            policy=PolicyContext(classification="restricted", regions=("eu",)),
            via=(NodeId("nod_a"), NodeId("nod_b")),
        )

        token = node.issuer.mint(
            auth, audience=node.audience, scopes=frozenset({"models:invoke"}), lifetime=timedelta(minutes=1)
        )
        verified = await node.verifier.verify(token)

        assert (verified.policy, verified.via, verified.roles, verified.namespace, verified.scopes) == (
            auth.policy, auth.via, auth.roles, "lab", frozenset({"models:invoke"}),
        )  # fmt: skip

    @pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1), timedelta(seconds=3_601)])
    async def test_a_lifetime_out_of_bounds_is_refused(self, node: TokenNode, lifetime: timedelta) -> None:
        with pytest.raises(InvalidArgument):
            node.issuer.mint(PLATFORM, audience="x", scopes=frozenset(), lifetime=lifetime)
