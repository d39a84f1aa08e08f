"""A principal that was barred or bounded, at the door and at the command line."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.cli.principal_command import Verb, changed
from ports.context import AuthContext
from ports.errors import InvalidArgument, Unauthenticated
from ports.ids import PrincipalId, TenantId
from ports.tenant import Principal
from tests.support.tokens import TokenNode, token_node

WITHIN = timedelta(seconds=5)
READING = frozenset({"runs:read", "agents:read"})


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[TokenNode]:
    async with token_node(tmp_path) as opened:
        yield opened


async def put(node: TokenNode, *, disabled: bool = False, scopes: frozenset[str] | None = None) -> None:
    administrator = AuthContext(
        tenant=node.subject.tenant, principal=PrincipalId("usr_admin"), scopes=frozenset({"admin:tenant"})
    )
    await node.tenants.put_principal(
        administrator,
        node.subject.principal,
        status="disabled" if disabled else "active",
        roles=None if scopes is None else frozenset({"viewer"}),
        scopes=scopes,
    )


@pytest.mark.anyio
class TestAtTheDoor:
    async def test_a_disabled_principal_is_refused_within_seconds_and_taken_again_when_enabled(
        self, node: TokenNode
    ) -> None:
        tokens = (node.token(), (await node.api_key())[0])
        for token in tokens:
            await node.verifier.verify(token)

        await put(node, disabled=True)
        await node.advance(WITHIN)
        for token in tokens:
            with pytest.raises(Unauthenticated):
                await node.verifier.verify(token)
        await put(node)
        await node.advance(WITHIN)

        for token in tokens:
            assert (await node.verifier.verify(token)).principal == node.subject.principal

    async def test_a_bounded_principal_keeps_of_its_scopes_what_its_roles_have_and_gains_none(
        self, node: TokenNode
    ) -> None:
        api_key, _ = await node.api_key(scopes=frozenset({"runs:read", "runs:create"}))
        tokens = (node.token(scope="runs:read runs:create"), api_key)
        for token in tokens:
            await node.verifier.verify(token)

        await put(node, scopes=READING)
        await node.advance(WITHIN)

        for token in tokens:
            auth = await node.verifier.verify(token)
            assert (auth.scopes, auth.roles) == (frozenset({"runs:read"}), frozenset({"viewer"}))


def kept(roles: frozenset[str] | None) -> Principal:
    return Principal(
        id=PrincipalId("usr_ann"),
        tenant=TenantId("tnt_acme"),
        status="disabled",
        roles=roles,
        scopes=None if roles is None else frozenset(),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


class TestVerbs:
    @pytest.mark.parametrize(
        ("verb", "known", "roles", "left"),
        [
            ("create", None, (), ("active", None)),
            ("create", None, ("viewer",), ("active", {"viewer"})),
            ("disable", None, (), ("disabled", None)),
            ("enable", kept(frozenset({"editor"})), (), ("active", {"editor"})),
            ("grant", kept(frozenset({"editor"})), ("viewer",), ("disabled", {"editor", "viewer"})),
            ("revoke", kept(frozenset({"editor"})), ("editor",), ("disabled", set())),
        ],
    )
    def test_a_verb_changes_what_it_is_about_alone(
        self, verb: Verb, known: Principal | None, roles: tuple[str, ...], left: tuple[str, set[str] | None]
    ) -> None:
        assert changed(verb, known, roles) == left

    @pytest.mark.parametrize("known", [None, kept(None), kept(frozenset({"viewer"}))])
    def test_a_role_that_is_not_there_is_not_taken(self, known: Principal | None) -> None:
        with pytest.raises(InvalidArgument):
            changed("revoke", known, ("editor",))
