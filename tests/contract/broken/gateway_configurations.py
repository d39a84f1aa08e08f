"""Broken stores of the gateway's configuration."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import gateway_configuration
from adapters.inproc.gateway_configuration import CURSOR, InprocGatewayConfigurations
from adapters.inproc.store import Store, store
from conformance.gateway_configuration import GatewayConfigurationContract
from conformance.people import PLATFORM
from ports.context import GATEWAY_FOLLOW, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import Conflict
from ports.gateway_configuration import MAX_DOCUMENT_BYTES, Draft, GatewayConfigurations, Summary, Version
from ports.messages import Page
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing


class BrokenHarness(InprocHarness[GatewayConfigurations]):
    def __init__(self, broken: type[InprocGatewayConfigurations], *, forgetful: bool) -> None:
        super().__init__(gateway_configuration.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> GatewayConfigurations:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> GatewayConfigurations:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenConfigurations(Mutant, GatewayConfigurationContract):
    broken: ClassVar[type[InprocGatewayConfigurations]] = InprocGatewayConfigurations
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenHarness]:
        async with closing(BrokenHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenConfigurations):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class LooksThenWrites(InprocGatewayConfigurations):
    """Others act between its look at the newest number and its write."""

    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        newest = len(self._versions.rows)
        if if_match is not None and if_match == newest:
            await self._clock.sleep(timedelta(0))
            if_match = None
        return await super().put(auth, draft, if_match=if_match, key=key)


class TestLooksThenWrites(BrokenConfigurations):
    broken = LooksThenWrites
    caught_by = frozenset({"test_of_many_who_looked_at_the_same_version_one_wins"})


class LeavesGaps(InprocGatewayConfigurations):
    """Numbers come from a sequence, which a refused change uses up."""

    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        try:
            return await super().put(auth, draft, if_match=if_match, key=key)
        except Conflict:
            if self._versions.rows:
                self._versions.rows.append(replace(self._versions.rows[-1], version=len(self._versions.rows) + 1))
            raise


class TestLeavesGaps(BrokenConfigurations):
    broken = LeavesGaps
    caught_by = frozenset(
        {
            "test_whoever_looked_at_another_version_changes_nothing",
            "test_of_many_who_looked_at_the_same_version_one_wins",
            "test_a_key_belongs_to_one_change",
        }
    )


class KeepsTheFirstInForce(InprocGatewayConfigurations):
    async def current(self, auth: AuthContext, *, newer_than: int = 0) -> Version | None:
        found = await super().current(auth, newer_than=newer_than)
        return None if found is None else self._versions.rows[0]


class TestKeepsTheFirstInForce(BrokenConfigurations):
    broken = KeepsTheFirstInForce
    caught_by = frozenset(
        {
            "test_versions_are_numbered_from_one_and_the_newest_is_in_force",
            "test_whoever_looked_at_another_version_changes_nothing",
            "test_of_many_who_looked_at_the_same_version_one_wins",
            "test_restoring_says_an_earlier_version_again",
            "test_the_current_version_is_told_to_those_who_have_an_older_one",
            "test_a_repeat_gives_what_the_first_one_made",
            "test_a_key_belongs_to_one_change",
        }
    )


class ForgetsWho(InprocGatewayConfigurations):
    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        made = await super().put(auth, draft, if_match=if_match, key=key)
        self._versions.rows[made.version - 1] = replace(made, principal=PLATFORM.principal)
        return self._versions.rows[made.version - 1]


class TestForgetsWho(BrokenConfigurations):
    broken = ForgetsWho
    caught_by = frozenset({"test_a_version_says_what_it_was_given_who_made_it_and_when"})


class DropsWhatIsNull(InprocGatewayConfigurations):
    """Tidies documents up."""

    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        if isinstance(draft.document, dict):
            kept = {name: value for name, value in draft.document.items() if value is not None}
            draft = replace(draft, document=kept)
        return await super().put(auth, draft, if_match=if_match, key=key)


class TestDropsWhatIsNull(BrokenConfigurations):
    broken = DropsWhatIsNull
    caught_by = frozenset({"test_a_version_says_what_it_was_given_who_made_it_and_when"})


class RestoresWithoutSaying(InprocGatewayConfigurations):
    async def restore(
        self, auth: AuthContext, version: int, *, comment: str, if_match: int | None, key: str
    ) -> Version:
        made = await super().restore(auth, version, comment=comment, if_match=if_match, key=key)
        self._versions.rows[made.version - 1] = replace(made, restores=None)
        return self._versions.rows[made.version - 1]


class TestRestoresWithoutSaying(BrokenConfigurations):
    broken = RestoresWithoutSaying
    caught_by = frozenset({"test_restoring_says_an_earlier_version_again"})


class TellsItAgain(InprocGatewayConfigurations):
    async def current(self, auth: AuthContext, *, newer_than: int = 0) -> Version | None:
        return await super().current(auth, newer_than=min(newer_than, 0))


class TestTellsItAgain(BrokenConfigurations):
    broken = TellsItAgain
    caught_by = frozenset({"test_the_current_version_is_told_to_those_who_have_an_older_one"})


class GetsTheNewest(InprocGatewayConfigurations):
    """For a version that never was, too."""

    async def get(self, auth: AuthContext, version: int) -> Version:
        return await super().get(auth, min(version, len(self._versions.rows)))


class TestGetsTheNewest(BrokenConfigurations):
    broken = GetsTheNewest
    caught_by = frozenset({"test_every_version_can_be_looked_at"})


class PagesByOffset(InprocGatewayConfigurations):
    """What is added moves the pages behind a cursor."""

    async def list_versions(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Summary]:
        skipped = 0 if cursor is None else decode_cursor(CURSOR, cursor, tuple[int])[0]
        every = (await super().list_versions(auth, limit=200)).items
        shown = every[skipped : skipped + limit]
        end = skipped + len(shown)
        return Page(items=shown, next_cursor=encode_cursor(CURSOR, (end,)) if end < len(every) else None)


class TestPagesByOffset(BrokenConfigurations):
    broken = PagesByOffset
    caught_by = frozenset({"test_what_is_added_meanwhile_is_not_on_later_pages"})


class ListsDocuments(InprocGatewayConfigurations):
    async def list_versions(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Summary]:
        page = await super().list_versions(auth, limit=limit, cursor=cursor)
        return replace(page, items=tuple(self._one(one.version) for one in page.items))


class TestListsDocuments(BrokenConfigurations):
    broken = ListsDocuments
    caught_by = frozenset({"test_the_list_is_newest_first_and_names_no_documents"})


class ForgetsKeys(InprocGatewayConfigurations):
    def _made(self, auth: AuthContext, key: str, request: str) -> Version | None:
        super()._made(auth, f"another key than {key}", request)
        return None


class TestForgetsKeys(BrokenConfigurations):
    broken = ForgetsKeys
    caught_by = frozenset(
        {
            "test_a_repeat_gives_what_the_first_one_made",
            "test_a_key_belongs_to_one_change",
            "test_what_was_added_is_there_for_a_store_opened_anew",
        }
    )


class SharesKeys(InprocGatewayConfigurations):
    """Among all who administer."""

    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        made = await super().put(
            replace(auth, tenant=PLATFORM.tenant, principal=PLATFORM.principal), draft, if_match=if_match, key=key
        )
        self._versions.rows[made.version - 1] = replace(made, tenant=auth.tenant, principal=auth.principal)
        return self._versions.rows[made.version - 1]


class TestSharesKeys(BrokenConfigurations):
    broken = SharesKeys
    caught_by = frozenset({"test_a_key_of_somebody_else_is_another"})


class LetsTenantAdminsIn(InprocGatewayConfigurations):
    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        if "admin:tenant" in auth.scopes:
            auth = replace(auth, scopes=auth.scopes | {"admin:platform"})
        return await super().put(auth, draft, if_match=if_match, key=key)


class TestLetsTenantAdminsIn(BrokenConfigurations):
    broken = LetsTenantAdminsIn
    caught_by = frozenset({"test_only_the_platform_changes_and_lists"})


class ShowsEverybody(InprocGatewayConfigurations):
    async def get(self, auth: AuthContext, version: int) -> Version:
        return await super().get(replace(auth, scopes=frozenset({GATEWAY_FOLLOW})), version)


class TestShowsEverybody(BrokenConfigurations):
    broken = ShowsEverybody
    caught_by = frozenset({"test_the_gateway_may_read_and_tenants_may_not"})


class TakesAnySize(InprocGatewayConfigurations):
    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        if len(str(draft.document)) < MAX_DOCUMENT_BYTES:
            return await super().put(auth, draft, if_match=if_match, key=key)
        made = await super().put(auth, replace(draft, document={}), if_match=if_match, key=key)
        self._versions.rows[made.version - 1] = replace(made, document=draft.document)
        return self._versions.rows[made.version - 1]


class TestTakesAnySize(BrokenConfigurations):
    broken = TakesAnySize
    caught_by = frozenset({"test_what_is_too_large_is_refused"})


class TestForgetsAtReopen(BrokenConfigurations):
    forgetful = True
    caught_by = frozenset({"test_what_was_added_is_there_for_a_store_opened_anew"})
