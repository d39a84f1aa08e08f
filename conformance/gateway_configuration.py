"""What every store of the gateway's configuration must show. Clauses: `ports.gateway_configuration`."""

from datetime import timedelta
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import GatewayConfigurationHarness
from conformance.people import ACME, PLATFORM
from ports.context import ADMIN_PLATFORM, GATEWAY_FOLLOW, AuthContext
from ports.errors import AgentOSError, Conflict, InvalidArgument, NotFound, PermissionDenied
from ports.gateway_configuration import (
    MAX_COMMENT_CHARS,
    MAX_DOCUMENT_BYTES,
    Draft,
    GatewayConfigurations,
    Summary,
    Version,
)
from ports.ids import PrincipalId, TenantId
from ports.messages import Json

DOCUMENT: Final[Json] = {
    "routing": {"aliases": {"z": "m", "a": "grüß 🦭"}, "canaries": [{"percent": 0.5}]},
    "backends": [],
    "none": None,
}
OTHER: Final = replace(PLATFORM, principal=PrincipalId("usr_other"))
ELSEWHERE: Final = replace(PLATFORM, tenant=TenantId("tnt_elsewhere"))
GATEWAY: Final = replace(ACME, scopes=frozenset({GATEWAY_FOLLOW}))
HUGE: Final = 10**30


def draft(name: str = "a", *, comment: str = "") -> Draft:
    return Draft(document={"named": name}, digest=f"digest of {name}", comment=comment)


async def put(
    store: GatewayConfigurations,
    name: str = "a",
    *,
    if_match: int | None = None,
    key: str | None = None,
    auth: AuthContext = PLATFORM,
) -> Version:
    return await store.put(auth, draft(name), if_match=if_match, key=f"key of {name}" if key is None else key)


async def restored(
    store: GatewayConfigurations, version: int, *, if_match: int | None = None, key: str = "back", comment: str = ""
) -> Version:
    return await store.restore(PLATFORM, version, comment=comment, if_match=if_match, key=key)


async def newest(store: GatewayConfigurations) -> int:
    found = await store.current(PLATFORM)
    return 0 if found is None else found.version


async def listed(store: GatewayConfigurations, limit: int = 200) -> list[Summary]:
    found: list[Summary] = []
    cursor: str | None = None
    while True:
        page = await store.list_versions(PLATFORM, limit=limit, cursor=cursor)
        found += page.items
        if page.next_cursor is None:
            return found
        cursor = page.next_cursor


@pytest.mark.anyio
class GatewayConfigurationContract(Contract):
    @clause("CFG-1")
    async def test_versions_are_numbered_from_one_and_the_newest_is_in_force(
        self, harness: GatewayConfigurationHarness
    ) -> None:
        store = await harness.open()

        numbers = [(await put(store, name)).version for name in ("a", "b")]
        numbers.append((await restored(store, 1)).version)

        found = await store.current(PLATFORM)
        assert numbers == [1, 2, 3]
        assert found is not None
        assert (found.version, found.document) == (3, {"named": "a"})

    @clause("CFG-1", "CFG-2")
    async def test_many_at_once_get_a_number_each_without_gaps(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        numbers: list[int] = []

        async def change(number: int) -> None:
            numbers.append((await put(store, f"n{number}")).version)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(change, number)

        assert sorted(numbers) == list(range(1, 9))

    @clause("CFG-2")
    @pytest.mark.parametrize("if_match", [0, 1, 3, -1, HUGE])
    async def test_whoever_looked_at_another_version_changes_nothing(
        self, harness: GatewayConfigurationHarness, if_match: int
    ) -> None:
        store = await harness.open()
        await put(store, "a", if_match=0)
        await put(store, "b", if_match=1)

        with pytest.raises(Conflict) as putting:
            await put(store, "c", if_match=if_match)
        with pytest.raises(Conflict) as restoring:
            await restored(store, 1, if_match=if_match)

        assert [error.value.details["current"] for error in (putting, restoring)] == [2, 2]
        assert await newest(store) == 2
        assert (await restored(store, 1, if_match=2)).version == 3

    @clause("CFG-2")
    async def test_of_many_who_looked_at_the_same_version_one_wins(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        await put(store, "first")
        won: list[int] = []
        lost: list[str] = []

        async def change(number: int) -> None:
            try:
                won.append((await put(store, f"n{number}", if_match=1)).version)
            except Conflict as error:
                lost.append(error.code)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(change, number)

        assert (won, lost) == ([2], ["conflict"] * 7)
        assert await newest(store) == 2

    @clause("CFG-3")
    async def test_a_version_says_what_it_was_given_who_made_it_and_when(
        self, harness: GatewayConfigurationHarness
    ) -> None:
        store = await harness.open()
        before = await harness.now()
        await harness.advance(timedelta(minutes=1))

        given = Draft(document=DOCUMENT, digest="d" * 12, comment="why: grüß 🦭")
        made = await store.put(OTHER, given, if_match=None, key="k")

        assert made == await store.get(PLATFORM, 1)
        assert (made.document, made.digest, made.comment) == (DOCUMENT, "d" * 12, "why: grüß 🦭")
        assert (made.tenant, made.principal, made.restores) == (OTHER.tenant, OTHER.principal, None)
        assert timedelta(minutes=1) <= made.created_at - before < timedelta(minutes=2)

    @clause("CFG-4")
    async def test_restoring_says_an_earlier_version_again(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        for name in ("a", "b", "c"):
            await put(store, name)

        made = await restored(store, 2, comment="c broke it")

        assert (made.version, made.restores, made.comment) == (4, 2, "c broke it")
        assert (made.document, made.digest) == ({"named": "b"}, "digest of b")
        assert made == await store.current(PLATFORM)
        assert (await store.get(PLATFORM, 2)).restores is None

    @clause("CFG-4")
    @pytest.mark.parametrize("absent", [0, -1, 2, HUGE])
    async def test_what_never_was_is_not_restored(self, harness: GatewayConfigurationHarness, absent: int) -> None:
        store = await harness.open()
        await put(store)

        with pytest.raises(NotFound):
            await restored(store, absent)

        assert await newest(store) == 1

    @clause("CFG-5")
    async def test_the_current_version_is_told_to_those_who_have_an_older_one(
        self, harness: GatewayConfigurationHarness
    ) -> None:
        store = await harness.open()
        at_first = await store.current(PLATFORM)
        for name in ("a", "b"):
            await put(store, name)

        found = [await store.current(PLATFORM, newer_than=seen) for seen in (0, 1, 2, 3, HUGE)]

        assert at_first is None
        assert [one and one.version for one in found] == [2, 2, None, None, None]

    @clause("CFG-6")
    async def test_every_version_can_be_looked_at(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        made = [await put(store, name) for name in ("a", "b", "c")]

        assert [await store.get(PLATFORM, one.version) for one in made] == made
        for absent in (0, -1, 4, HUGE):
            with pytest.raises(NotFound):
                await store.get(PLATFORM, absent)

    @clause("CFG-7")
    async def test_the_list_is_newest_first_and_names_no_documents(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        for name in "abcde":
            await put(store, name)

        by_twos, at_once = await listed(store, 2), await listed(store)

        assert [one.version for one in by_twos] == [5, 4, 3, 2, 1]
        assert by_twos == at_once
        assert [one.digest for one in at_once] == [f"digest of {name}" for name in "edcba"]
        assert not any(hasattr(one, "document") for one in at_once)

    @clause("CFG-7")
    async def test_what_is_added_meanwhile_is_not_on_later_pages(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        for name in "abc":
            await put(store, name)

        first = await store.list_versions(PLATFORM, limit=2)
        await put(store, "d")
        second = await store.list_versions(PLATFORM, limit=2, cursor=first.next_cursor)

        assert [one.version for one in (*first.items, *second.items)] == [3, 2, 1]
        assert second.next_cursor is None

    @clause("CFG-8")
    async def test_a_repeat_gives_what_the_first_one_made(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        first = await put(store, "a", if_match=0)
        back = await restored(store, 1, if_match=1)
        await put(store, "b")

        again = await put(store, "a", if_match=0)
        back_again = await restored(store, 1, if_match=HUGE)

        assert (again, back_again) == (first, back)
        assert await newest(store) == 3

    @clause("CFG-8")
    async def test_a_key_belongs_to_one_change(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        await put(store, "a", key="k")
        other = Draft(document={"named": "a"}, digest="digest of a", comment="another")
        await restored(store, 1, key="r")

        refusals: list[AgentOSError] = []
        for again in (
            put(store, "b", key="k"),
            store.put(PLATFORM, other, if_match=None, key="k"),
            restored(store, 1, key="k"),
            restored(store, 2, key="r"),
            restored(store, 1, key="r", comment="another"),
        ):
            with pytest.raises(Conflict) as refusal:
                await again
            refusals.append(refusal.value)

        assert {error.code for error in refusals} == {"idempotency_key_reused"}
        assert await newest(store) == 2

    @clause("CFG-8")
    @pytest.mark.parametrize("other", [OTHER, ELSEWHERE], ids=["another principal", "another tenant"])
    async def test_a_key_of_somebody_else_is_another(
        self, harness: GatewayConfigurationHarness, other: AuthContext
    ) -> None:
        store = await harness.open()

        await put(store, "a", key="k")
        theirs = await put(store, "b", key="k", auth=other)

        assert (theirs.version, theirs.document) == (2, {"named": "b"})

    @clause("CFG-9")
    async def test_only_the_platform_changes_and_lists(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        await put(store)
        tenant_admin = replace(PLATFORM, scopes=ACME.scopes | {"admin:tenant"})

        for auth in (ACME, tenant_admin, GATEWAY):
            with pytest.raises(PermissionDenied):
                await put(store, "b", auth=auth)
            with pytest.raises(PermissionDenied):
                await store.restore(auth, 1, comment="", if_match=None, key="k")
            with pytest.raises(PermissionDenied):
                await store.list_versions(auth, limit=1)

        assert await newest(store) == 1

    @clause("CFG-9")
    async def test_the_gateway_may_read_and_tenants_may_not(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        made = await put(store)

        assert await store.current(GATEWAY) == made
        assert await store.get(GATEWAY, 1) == made
        with pytest.raises(PermissionDenied):
            await store.current(ACME)
        with pytest.raises(PermissionDenied):
            await store.get(ACME, 1)
        assert ADMIN_PLATFORM not in GATEWAY.scopes

    @clause("CFG-10")
    async def test_what_is_too_large_is_refused(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        refused: list[Any] = [
            Draft(document={"x": "y" * MAX_DOCUMENT_BYTES}, digest="d"),
            Draft(document={}, digest="d", comment="c" * (MAX_COMMENT_CHARS + 1)),
            Draft(document={}, digest="d", comment="nul \x00"),
        ]

        for one in refused:
            with pytest.raises(InvalidArgument):
                await store.put(PLATFORM, one, if_match=None, key="k")
        large = Draft(document={"x": "y" * (MAX_DOCUMENT_BYTES - 8)}, digest="d", comment="c" * MAX_COMMENT_CHARS)
        made = await store.put(PLATFORM, large, if_match=0, key="k")
        with pytest.raises(InvalidArgument):
            await restored(store, 1, comment="c" * (MAX_COMMENT_CHARS + 1))

        assert (await store.get(PLATFORM, 1)).document == large.document
        assert made.version == await newest(store) == 1

    @clause("CFG-11")
    async def test_what_was_added_is_there_for_a_store_opened_anew(self, harness: GatewayConfigurationHarness) -> None:
        store = await harness.open()
        made = await put(store)

        again = await harness.reopen()

        assert await again.current(PLATFORM) == made
        assert await put(again) == made
