"""Tokens of a trusted issuer elsewhere: what they mean here, and every rule with a token that breaks it and no other."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from adapters.token_auth.trust import TrustedIssuer, identity_of, read_trusted
from conformance.people import ACME, PLATFORM
from ports.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from ports.ids import PrincipalId
from tests.support.oidc import HOST, TrustingNode, public_jwk, trusted, trusting_node, write
from tests.support.tokens import base64url, signed_bytes

NOW = 1_893_499_200  # conformance.clock.EPOCH


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[TrustingNode]:
    async with trusting_node(tmp_path) as opened:
        yield opened


async def assert_refused(node: TrustingNode, token: str) -> None:
    with pytest.raises(Unauthenticated):
        pytest.fail(f"accepted as {await node.verifier.verify(token)}")


@pytest.mark.anyio
class TestWhatATokenMeans:
    async def test_its_claims_become_tenant_principal_and_scopes(self, node: TrustingNode) -> None:
        auth = await node.verifier.verify(node.issuer.token())

        assert (auth.tenant, auth.principal) == ("tnt_acme", "acme:ann")
        assert auth.scopes == {"runs:read", "runs:create"}
        assert (auth.roles, auth.namespace) == (frozenset(), "default")

    async def test_an_issuer_of_one_tenant_needs_no_claim_for_it(self, node: TrustingNode) -> None:
        await node.trust({"name": "acme", "issuer": node.issuer.url, "tenant": "tnt_acme"})

        auth = await node.verifier.verify(node.issuer.token(org=..., tenant_id="tnt_globex"))

        assert auth.tenant == "tnt_acme"

    @pytest.mark.parametrize("org", ["globex", "tnt_globex", "tnt_acme", "", ["acme"], None, 7, ...])
    async def test_an_issuer_speaks_for_no_tenant_that_it_was_not_given(self, node: TrustingNode, org: object) -> None:
        issuer = msgspec.convert(trusted(node.issuer), TrustedIssuer)

        await assert_refused(node, node.issuer.token(org=org))
        # That no directory knows such a tenant is another control.
        with pytest.raises(Unauthenticated):
            identity_of(issuer, node.issuer.claims(org=org), surface="stack-a", now=NOW)

    async def test_roles_mean_ours_and_reach_no_further_than_the_issuer_may(self, node: TrustingNode) -> None:
        await node.trust(
            trusted(
                node.issuer,
                roles_claim=["realm_access", "roles"],
                roles={"readers": "viewer", "root": "platform_admin"},
                scopes=["runs:read", "agents:read", "memory:read", "usage:read", "admin:tenant"],
            )
        )

        auth = await node.verifier.verify(
            node.issuer.token(scope=..., realm_access={"roles": ["readers", "root", "viewer", "unknown"]})
        )

        assert auth.roles == {"viewer"}
        assert auth.scopes == {"runs:read", "agents:read", "memory:read", "usage:read", "admin:tenant"}

    async def test_a_token_gives_nobody_the_platform_or_another_tenant_unless_the_operator_said_so(
        self, node: TrustingNode
    ) -> None:
        token = node.issuer.token(
            scope="runs:read admin:platform tenant:act_as admin:tenant queue:any-tenant egress:node"
        )

        assert (await node.verifier.verify(token)).scopes == {"runs:read"}

    @pytest.mark.parametrize(("claim", "value"), [("scp", ["runs:read"]), ("scp", "runs:read  made:up")])
    async def test_scopes_may_be_words_or_a_list(self, node: TrustingNode, claim: str, value: object) -> None:
        await node.trust(trusted(node.issuer, scope_claim=claim))
        changed: dict[str, Any] = {claim: value}

        assert (await node.verifier.verify(node.issuer.token(**changed))).scopes == {"runs:read"}

    async def test_a_namespace_may_be_claimed(self, node: TrustingNode) -> None:
        await node.trust(trusted(node.issuer, namespace_claim="team"))

        assert (await node.verifier.verify(node.issuer.token(team="lab"))).namespace == "lab"
        await assert_refused(node, node.issuer.token())
        await assert_refused(node, node.issuer.token(team="../x"))

    async def test_claims_of_our_own_issuer_mean_nothing_from_elsewhere(self, node: TrustingNode) -> None:
        token = node.issuer.token(
            policy={"classification": "public"}, via=["nod_a"], roles=["tenant_admin"], namespace="x"
        )

        auth = await node.verifier.verify(token)

        assert (auth.policy.classification, auth.via, auth.roles, auth.namespace) == (
            "internal",
            (),
            frozenset(),
            "default",
        )

    async def test_each_surface_has_its_audience(self, node: TrustingNode) -> None:
        await node.trust(trusted(node.issuer, audiences={"stack-a": "https://api.acme.example"}))

        assert (await node.verifier.verify(node.issuer.token(aud="https://api.acme.example"))).tenant == ACME.tenant
        await assert_refused(node, node.issuer.token())

    async def test_a_barred_principal_and_a_disabled_tenant_are_refused(self, node: TrustingNode) -> None:
        admin = replace(ACME, scopes=frozenset({"admin:tenant"}))
        await node.tenants.put_principal(admin, PrincipalId("acme:ann"), status="disabled")
        await assert_refused(node, node.issuer.token())

        await node.tenants.set_status(PLATFORM, ACME.tenant, "disabled")
        with pytest.raises(PermissionDenied):
            await node.verifier.verify(node.issuer.token(sub="ben"))

    @pytest.mark.parametrize("alg", ["EdDSA", "ES256", "RS256"])
    async def test_each_algorithm_of_the_list_is_taken(self, node: TrustingNode, alg: str) -> None:
        node.issuer.add("another", alg)

        assert (await node.verifier.verify(node.issuer.token(kid="another"))).principal == "acme:ann"

    @pytest.mark.parametrize("alg", ["RS512", "PS256"])
    async def test_no_other_algorithm_is(self, node: TrustingNode, alg: str) -> None:
        node.issuer.add("another", alg)

        await assert_refused(node, node.issuer.token(kid="another"))

    async def test_an_issuer_may_be_held_to_fewer_algorithms(self, node: TrustingNode) -> None:
        node.issuer.add("another", "RS256")
        await node.trust(trusted(node.issuer, algorithms=["EdDSA"]))

        assert await node.verifier.verify(node.issuer.token(kid="first"))
        await assert_refused(node, node.issuer.token(kid="another"))


@pytest.mark.anyio
class TestRules:
    @pytest.mark.parametrize("claim", ["iss", "aud", "sub", "exp", "iat", "jti"])
    async def test_a_required_claim_is_required(self, node: TrustingNode, claim: str) -> None:
        claims = node.issuer.claims(**{claim: ...})

        await assert_refused(node, _signed(node, claims))

    @pytest.mark.parametrize(
        "changed",
        [
            {"aud": ["stack-a"]}, {"aud": ["stack-a", "x"]}, {"aud": "stack-b"}, {"aud": ""}, {"aud": None},
            {"iss": "https://evil.example"}, {"iss": None}, {"iss": ["x"]}, {"iss": 7},
            {"exp": str(NOW + 600)}, {"exp": NOW + 600.5}, {"exp": True}, {"exp": 10**30}, {"exp": NOW - 61},
            {"exp": NOW + 3_601}, {"iat": str(NOW)}, {"iat": NOW + 61, "exp": NOW + 600}, {"nbf": NOW + 61}, {"nbf": "0"},
            {"sub": ""}, {"sub": 7}, {"sub": "a\nb"}, {"sub": "a" * 255}, {"jti": ""}, {"jti": 7},
            {"scope": 7}, {"scope": [["runs:read"]]}, {"scope": ["runs:read"] * 257}, {"scope": {"runs:read": True}},
        ],
    )  # fmt: skip
    async def test_a_claim_of_another_type_or_value_is_refused(
        self, node: TrustingNode, changed: dict[str, object]
    ) -> None:
        await assert_refused(node, _signed(node, node.issuer.claims(**changed)))

    @pytest.mark.parametrize(
        "header",
        [
            {"typ": "JWT"}, {"typ": "id+jwt"}, {"typ": None}, {"jku": "https://evil.example/jwks"}, {"jwk": {"kty": "OKP"}},
            {"x5u": "https://evil.example/x"}, {"x5c": ["MIIB"]}, {"crit": ["exp"]}, {"zip": "DEF"}, {"b64": False},
            {"kid": "unknown"}, {"kid": ""}, {"kid": 7}, {"kid": "../first"}, {"kid": ["first"]}, {"alg": "none"},
            {"alg": "HS256"}, {"alg": "ES256"}, {"alg": "RS256"},
        ],
    )  # fmt: skip
    async def test_a_header_with_anything_odd_is_refused(self, node: TrustingNode, header: dict[str, object]) -> None:
        await assert_refused(node, _signed(node, node.issuer.claims(), **header))

    async def test_no_signature_and_one_by_the_public_key_are_refused(self, node: TrustingNode) -> None:
        key, alg = node.issuer.keys["first"]
        jwk = public_jwk(key, alg)
        for secret in (jwk["x"].encode(), base64.urlsafe_b64decode(jwk["x"] + "="), json.dumps(jwk).encode()):
            head = base64url(json.dumps({"alg": "HS256", "kid": "first", "typ": "at+jwt"}).encode())
            signing_input = f"{head}.{base64url(json.dumps(node.issuer.claims()).encode())}"
            mac = hmac.digest(secret, signing_input.encode(), hashlib.sha256)
            await assert_refused(node, f"{signing_input}.{base64url(mac)}")

        await assert_refused(node, node.issuer.token().rpartition(".")[0] + ".")
        await assert_refused(node, node.issuer.token().rpartition(".")[0])

    async def test_members_given_twice_are_refused(self, node: TrustingNode) -> None:
        claims = json.dumps(node.issuer.claims())
        for twice in (claims[:-1] + ', "org": "acme"}', claims[:-1] + ', "iss": "https://node.example"}'):
            await assert_refused(node, _signed_raw(node, twice.encode()))

    async def test_a_key_of_one_issuer_signs_for_no_other(self, node: TrustingNode) -> None:
        # Each lists the other's `kid`; what counts is whose name the token has.
        other = node.issuer.url.replace("acme", "other", 1)
        await node.trust(trusted(node.issuer), {"name": "other", "issuer": other, "tenant": "tnt_globex"})

        with pytest.raises(Unavailable):
            await node.verifier.verify(node.issuer.token(iss=other))
        await assert_refused(node, node.issuer.token(iss="https://node.example"))

    async def test_our_own_key_signs_for_no_other_issuer(self, node: TrustingNode) -> None:
        own = Ed25519PrivateKey.generate()
        header = json.dumps({"alg": "EdDSA", "kid": "first", "typ": "at+jwt"}).encode()

        await assert_refused(node, signed_bytes(own, header, node.issuer.claims()))

    async def test_an_id_token_is_no_access_token(self, node: TrustingNode) -> None:
        await assert_refused(node, node.issuer.token(header={"typ": "JWT"}, nonce="n"))


def _signed(node: TrustingNode, claims: dict[str, Any], **header: object) -> str:
    return _signed_raw(node, json.dumps(claims).encode(), **header)


def _signed_raw(node: TrustingNode, claims: bytes, **header: object) -> str:
    key, _ = node.issuer.keys["first"]
    assert isinstance(key, Ed25519PrivateKey)
    head = {"alg": "EdDSA", "kid": "first", "typ": "at+jwt"} | header
    return signed_bytes(key, json.dumps(head).encode(), claims)


@pytest.mark.anyio
class TestTheFile:
    async def test_an_issuer_taken_out_is_not_believed_within_seconds_and_the_others_are(
        self, node: TrustingNode
    ) -> None:
        assert await node.verifier.verify(node.issuer.token())

        await node.trust()

        await assert_refused(node, node.issuer.token())

    async def test_a_file_that_can_not_be_used_any_more_is_unavailable_for_theirs(self, node: TrustingNode) -> None:
        await node.verifier.verify(node.issuer.token())

        write(node.folder / "issuers.json", "{")
        await node.clock.advance(timedelta(seconds=1))

        with pytest.raises(Unavailable):
            await node.verifier.verify(node.issuer.token())

    async def test_a_node_does_not_start_with_one(self, node: TrustingNode) -> None:
        write(node.folder / "issuers.json", "{")

        with pytest.raises(Unavailable, match=r"issuers\.json"):
            async with node.open():
                pass

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            ({"issuer": "http://x.example"}, "https"), ({"issuer": "https://u@x.example"}, "https"),
            ({"issuer": "https://x.example?y"}, "https"), ({"issuer": "https://X.example"}, "https"),
            ({"issuer": "https://node.example"}, "own"), ({"jwks_uri": "file:///etc/passwd"}, "https"),
            ({"jwks_uri": "http://x.example/keys"}, "https"), ({"jwks_uri": "http://127.0.0.1/keys"}, "https"),
            ({"tenants": {}}, "for whom"), ({"tenant": "tnt_acme"}, "for whom"), ({"tenants": {"a": "acme"}}, "tenant"),
            ({"roles": {"a": "king"}}, "role"), ({"scopes": ["all"]}, "scope"), ({"scopes": ["egress:node"]}, "scope"),
            ({"algorithms": ["HS256"]}, "HS256"), ({"algorithms": []}, "algorithms"), ({"name": "A:b"}, "name"),
            ({"audiences": {"stack-c": "x"}}, "stack-c"), ({"unknown": 1}, "unknown"), ({"namespace": ""}, "namespace"),
        ],
    )  # fmt: skip
    def test_what_an_issuer_can_not_be_is_told(self, wrong: dict[str, object], text: str) -> None:
        good = {"name": "acme", "issuer": f"https://{HOST}", "tenants": {"acme": "tnt_acme"}}
        assert read_trusted(json.dumps({"issuers": [good]}).encode(), own="https://node.example")

        with pytest.raises(InvalidArgument, match=text):
            read_trusted(json.dumps({"issuers": [{**good, **wrong}]}).encode(), own="https://node.example")

    def test_two_of_one_name_or_of_one_issuer_are_refused(self) -> None:
        good = {"name": "acme", "issuer": f"https://{HOST}", "tenant": "tnt_acme"}
        for other in ({**good, "name": "b"}, {**good, "issuer": "https://b.example"}):
            with pytest.raises(InvalidArgument, match="two issuers"):
                read_trusted(json.dumps({"issuers": [good, other]}).encode(), own="x")
