"""What every TokenVerifier must show, and the issuer beside it. Clauses: `ports.auth`."""

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import AuthHarness
from ports.auth import MAX_TOKEN_CHARS
from ports.context import GATEWAY_FOLLOW, QUEUE_ANY_TENANT, RUNS_ANY_TENANT, AuthContext
from ports.errors import PermissionDenied, Unauthenticated, Unavailable

DEFECTS: Final = frozenset(
    {
        "expired", "not yet valid", "another issuer", "another audience", "unsigned", "another key", "another algorithm",
        "revoked", "no subject", "no tenant", "no expiry",
    }
)  # fmt: skip
"""What `AuthHarness.bad_tokens` must offer a token for; more are welcome."""

MALFORMED: Final = {
    "empty": "",
    "one word": "token",
    "three dots": "...",
    "not ascii": "tökén.ü.ß",
    "white space": "a b",
    "nul": "\x00",
    "too long": "a" * (MAX_TOKEN_CHARS + 1),
}

MEMORY: Final = timedelta(seconds=6)
"""Longer than a verifier may remember."""
LIFETIME: Final = timedelta(minutes=5)
LEEWAY: Final = timedelta(seconds=60)


@pytest.mark.anyio
class AuthContract(Contract):
    @clause("AUT-1")
    async def test_a_valid_token_gives_what_it_was_issued_with(self, harness: AuthHarness) -> None:
        verifier = await harness.open()

        for form, token in (await harness.good_tokens()).items():
            auth = await verifier.verify(token)

            assert auth.tenant == harness.subject.tenant, form
            assert auth.principal == harness.subject.principal, form
            assert auth.scopes == harness.subject.scopes, form
            assert auth.namespace == harness.subject.namespace, form

    @clause("AUT-1")
    async def test_a_token_verifies_again_and_again(self, harness: AuthHarness) -> None:
        verifier = await harness.open()

        for form, token in (await harness.good_tokens()).items():
            first = await verifier.verify(token)
            await harness.advance(MEMORY)

            assert await verifier.verify(token) == first, form

    @clause("AUT-2")
    async def test_every_defect_is_refused_and_the_text_does_not_say_which(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        bad = await harness.bad_tokens()
        assert set(bad) >= DEFECTS, "the harness lacks bad tokens"
        texts = set()

        for name, token in {**bad, **MALFORMED}.items():
            for _ in range(2):
                with pytest.raises(Unauthenticated) as refusal:
                    pytest.fail(f"accepted, though it is: {name}; {await verifier.verify(token)}")
                texts.add(refusal.value.message)

        assert len(texts) == 1

    @clause("AUT-2")
    async def test_a_good_token_with_any_part_changed_is_refused(self, harness: AuthHarness) -> None:
        verifier = await harness.open()

        for form, token in (await harness.good_tokens()).items():
            for place in range(0, len(token) - 1, 7):
                forged = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
                with pytest.raises(Unauthenticated):
                    pytest.fail(f"accepted {form} changed at {place}; {await verifier.verify(forged)}")

    @clause("AUT-8")
    async def test_what_is_at_hand_is_what_verifying_gives_and_nothing_else(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        at_hand: Callable[[str], AuthContext | None] | None = getattr(verifier, "at_hand", None)
        if at_hand is None:
            pytest.skip("not declared: at_hand")
        bad = await harness.bad_tokens()

        for form, token in (await harness.good_tokens()).items():
            assert at_hand(token) is None, form
            auth = await verifier.verify(token)
            assert at_hand(token) == auth, form
            assert at_hand(token + "x") is None, form
            await harness.advance(MEMORY)
            assert at_hand(token) is None, form
        for name, token in {**bad, **MALFORMED}.items():
            with pytest.raises(Unauthenticated):
                await verifier.verify(token)
            assert at_hand(token) is None, name

    @clause("AUT-3")
    async def test_a_disabled_tenants_tokens_are_denied_within_seconds(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        tokens = await harness.good_tokens()
        for token in tokens.values():
            await verifier.verify(token)

        await harness.disable_tenant(harness.subject.tenant)
        await harness.advance(MEMORY)

        for token in tokens.values():
            with pytest.raises(PermissionDenied) as refusal:
                await verifier.verify(token)
            assert refusal.value.code == "tenant_disabled"

    @clause("AUT-3")
    async def test_whose_denied_token_it_is_is_told_once_a_minute(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        token = next(iter((await harness.good_tokens()).values()))
        await harness.disable_tenant(harness.subject.tenant)

        async def told() -> list[AuthContext]:
            found = []
            for _ in range(10):
                with pytest.raises(PermissionDenied) as refusal:
                    await verifier.verify(token)
                if refusal.value.caller is not None:
                    found.append(refusal.value.caller)
                await harness.advance(MEMORY / 2)
            return found

        [first] = await told()
        assert (first.tenant, first.principal) == (harness.subject.tenant, harness.subject.principal)
        await harness.advance(timedelta(minutes=1))
        assert len(await told()) == 1

    @clause("AUT-4")
    async def test_a_token_never_carries_the_scopes_of_the_nodes_own_processes(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        inner = frozenset({QUEUE_ANY_TENANT, RUNS_ANY_TENANT, GATEWAY_FOLLOW})

        for form, token in (await harness.tokens_claiming(inner | harness.subject.scopes)).items():
            assert (await verifier.verify(token)).scopes == harness.subject.scopes, form

    @clause("AUT-5")
    async def test_a_store_that_can_not_be_asked_is_unavailable_not_unauthenticated(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        tokens = await harness.good_tokens()

        await harness.break_storage()

        for token in tokens.values():
            with pytest.raises(Unavailable):
                await verifier.verify(token)

    @clause("AUT-6")
    async def test_a_minted_token_verifies_until_its_lifetime_ends(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        issuer = await harness.issuer()
        [scope, *_] = sorted(harness.subject.scopes)

        token = issuer.mint(harness.subject, audience=harness.audience, scopes=frozenset({scope}), lifetime=LIFETIME)

        auth = await verifier.verify(token)
        assert (auth.tenant, auth.principal, auth.namespace, auth.scopes) == (
            harness.subject.tenant,
            harness.subject.principal,
            harness.subject.namespace,
            frozenset({scope}),
        )
        await harness.advance(LIFETIME / 2)
        assert await verifier.verify(token) == auth
        await harness.advance(LIFETIME / 2 + LEEWAY + MEMORY)
        with pytest.raises(Unauthenticated):
            await verifier.verify(token)

    @clause("AUT-6")
    async def test_a_minted_token_is_for_its_audience_only(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        issuer = await harness.issuer()

        token = issuer.mint(harness.subject, audience="somebody-else", scopes=harness.subject.scopes, lifetime=LIFETIME)

        with pytest.raises(Unauthenticated):
            await verifier.verify(token)

    @clause("AUT-6")
    async def test_a_minted_token_grants_no_more_than_its_context_holds(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        issuer = await harness.issuer()
        wanted = harness.subject.scopes | {"admin:platform", "audit:read", QUEUE_ANY_TENANT}

        token = issuer.mint(harness.subject, audience=harness.audience, scopes=wanted, lifetime=LIFETIME)

        assert (await verifier.verify(token)).scopes == harness.subject.scopes

    @clause("AUT-7")
    async def test_who_may_act_for_a_tenant_has_a_name_of_its_own_there(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        token, tenant = await harness.acting_token()

        auth = await verifier.act_as(token, tenant)

        assert auth == (await verifier.verify(token)).acting_for(tenant)
        assert auth.scopes == harness.subject.scopes
        assert (auth.tenant, auth.actor_tenant) == (tenant, harness.subject.tenant)
        assert auth.principal != harness.subject.principal
        assert (await verifier.act_as(token, harness.subject.tenant)).principal == harness.subject.principal

    @clause("AUT-7")
    async def test_whoever_may_not_act_for_it_is_refused_alike(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        token, tenant = await harness.acting_token()
        await verifier.act_as(token, tenant)
        await harness.end_acting(tenant)
        await harness.advance(MEMORY)
        refusals = set()

        for sent, named in (
            (token, tenant),
            (token, "tnt_nobody"),
            (token, "'; --"),
            (token, ""),
            *((plain, tenant) for plain in (await harness.good_tokens()).values()),
        ):
            with pytest.raises(PermissionDenied) as refusal:
                await verifier.act_as(sent, named)
            refusals.add((refusal.value.code, refusal.value.message))

        assert [code for code, _ in refusals] == ["tenant_mismatch"]

    @clause("AUT-7")
    async def test_a_tenant_that_is_disabled_is_acted_for_no_more(self, harness: AuthHarness) -> None:
        verifier = await harness.open()
        token, tenant = await harness.acting_token()
        await verifier.act_as(token, tenant)

        await harness.disable_tenant(tenant)
        await harness.advance(MEMORY)

        with pytest.raises(PermissionDenied) as refusal:
            await verifier.act_as(token, tenant)
        assert refusal.value.code == "tenant_disabled"
