"""Broken memories."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import memory
from adapters.inproc.memory import InprocMemory
from adapters.inproc.store import Store, store
from conformance.memory import MemoryContract
from ports.context import AuthContext
from ports.ids import TenantId
from ports.memory import MAX_KEY_CHARS, MAX_MATCHES, Match, MemoryItem, MemoryPort
from ports.messages import Json
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing

ONE = TenantId("tnt_one")


class BrokenMemoryHarness(InprocHarness[MemoryPort]):
    def __init__(self, broken: type[InprocMemory], *, forgetful: bool) -> None:
        super().__init__(memory.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> MemoryPort:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> MemoryPort:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenMemory(Mutant, MemoryContract):
    broken: ClassVar[type[InprocMemory]] = InprocMemory
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenMemoryHarness]:
        async with closing(BrokenMemoryHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenMemory):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class KeepsTheFirst(InprocMemory):
    async def put(self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None) -> None:
        if await self.get(auth, key) is None:
            await super().put(auth, key, value, metadata=metadata)


class TestKeepsTheFirst(BrokenMemory):
    broken = KeepsTheFirst
    caught_by = frozenset(
        {
            "test_putting_again_replaces_value_and_metadata",
        }
    )


class MergesMetadata(InprocMemory):
    async def put(self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None) -> None:
        known = await self.get(auth, key)
        await super().put(auth, key, value, metadata={**(known.metadata if known else {}), **(metadata or {})})


class TestMergesMetadata(BrokenMemory):
    broken = MergesMetadata
    caught_by = frozenset(
        {
            "test_putting_again_replaces_value_and_metadata",
        }
    )


class HandsOutItsOwnRows(InprocMemory):
    async def get(self, auth: AuthContext, key: str) -> MemoryItem | None:
        return self._rows.get((auth.tenant, auth.namespace, key))


class TestHandsOutItsOwnRows(BrokenMemory):
    broken = HandsOutItsOwnRows
    caught_by = frozenset(
        {
            "test_what_a_caller_does_to_its_value_afterwards_reaches_nothing",
        }
    )


class InventsWhatIsAbsent(InprocMemory):
    async def get(self, auth: AuthContext, key: str) -> MemoryItem | None:
        return await super().get(auth, key) or MemoryItem(key=key, value=None, updated_at=self._clock.now())


class TestInventsWhatIsAbsent(BrokenMemory):
    broken = InventsWhatIsAbsent
    caught_by = frozenset(
        {
            "test_an_absent_key_gives_none",
            "test_a_forgotten_item_is_neither_got_nor_found",
            "test_equal_keys_elsewhere_are_other_items",
            "test_a_key_or_value_over_its_limit_is_refused",
        }
    )


class MindsCase(InprocMemory):
    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        found = await super().search(auth, query, metadata=metadata, limit=limit)
        return tuple(match for match in found if any(word in str(match.item.value) for word in query.split()))


class TestMindsCase(BrokenMemory):
    broken = MindsCase
    caught_by = frozenset(
        {
            "test_search_finds_items_that_share_words",
            "test_case_and_punctuation_do_not_matter",
            "test_search_finds_the_words_inside_structured_values",
        }
    )


class FindsEverything(InprocMemory):
    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        found = list(await super().search(auth, query, metadata=metadata, limit=limit))
        known = {match.item.key for match in found}
        pairs = (metadata or {}).items()
        for (tenant, namespace, key), item in self._rows.items():
            mine = (tenant, namespace) == (auth.tenant, auth.namespace)
            if mine and key not in known and pairs <= item.metadata.items():
                found.append(Match(item=item, score=0.0))
        return tuple(found[:limit])


class TestFindsEverything(BrokenMemory):
    broken = FindsEverything
    caught_by = frozenset(
        {
            "test_putting_again_replaces_value_and_metadata",
            "test_search_finds_items_that_share_words",
            "test_search_gives_the_best_first",
            "test_a_query_without_words_finds_nothing",
        }
    )


class GivesTheWorstFirst(InprocMemory):
    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        return (await super().search(auth, query, metadata=metadata, limit=limit))[::-1]


class TestGivesTheWorstFirst(BrokenMemory):
    broken = GivesTheWorstFirst
    caught_by = frozenset(
        {
            "test_search_gives_the_best_first",
        }
    )


class FindsWithoutLimit(InprocMemory):
    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        del limit
        return await super().search(auth, query, metadata=metadata, limit=MAX_MATCHES)


class TestFindsWithoutLimit(BrokenMemory):
    broken = FindsWithoutLimit
    caught_by = frozenset(
        {
            "test_search_gives_no_more_than_asked_for",
        }
    )


class IgnoresMetadata(InprocMemory):
    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        del metadata
        return await super().search(auth, query, limit=limit)


class TestIgnoresMetadata(BrokenMemory):
    broken = IgnoresMetadata
    caught_by = frozenset(
        {
            "test_putting_again_replaces_value_and_metadata",
            "test_search_with_metadata_finds_items_that_hold_all_pairs",
        }
    )


class ForgetsNothing(InprocMemory):
    async def forget(self, auth: AuthContext, key: str) -> bool:
        return await self.get(auth, key) is not None


class TestForgetsNothing(BrokenMemory):
    broken = ForgetsNothing
    caught_by = frozenset(
        {
            "test_a_forgotten_item_is_neither_got_nor_found",
        }
    )


class AlwaysSaysItForgot(InprocMemory):
    async def forget(self, auth: AuthContext, key: str) -> bool:
        await super().forget(auth, key)
        return True


class TestAlwaysSaysItForgot(BrokenMemory):
    broken = AlwaysSaysItForgot
    caught_by = frozenset(
        {
            "test_a_forgotten_item_is_neither_got_nor_found",
            "test_equal_keys_elsewhere_are_other_items",
        }
    )


class OneMemoryForAll(InprocMemory):
    async def put(self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None) -> None:
        await super().put(replace(auth, tenant=ONE), key, value, metadata=metadata)

    async def get(self, auth: AuthContext, key: str) -> MemoryItem | None:
        return await super().get(replace(auth, tenant=ONE), key)

    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        return await super().search(replace(auth, tenant=ONE), query, metadata=metadata, limit=limit)

    async def forget(self, auth: AuthContext, key: str) -> bool:
        return await super().forget(replace(auth, tenant=ONE), key)


class TestOneMemoryForAll(BrokenMemory):
    broken = OneMemoryForAll
    caught_by = frozenset(
        {
            "test_equal_keys_elsewhere_are_other_items",
        }
    )


class SearchesEveryNamespace(InprocMemory):
    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        spaces = sorted({key[1] for key in self._rows if key[0] == auth.tenant})
        found = [
            match
            for space in spaces
            for match in await super(SearchesEveryNamespace, self).search(
                replace(auth, namespace=space), query, metadata=metadata, limit=limit
            )
        ]
        return tuple(found[:limit])


class TestSearchesEveryNamespace(BrokenMemory):
    broken = SearchesEveryNamespace
    caught_by = frozenset(
        {
            "test_equal_keys_elsewhere_are_other_items",
        }
    )


class CutsLongKeys(InprocMemory):
    async def put(self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None) -> None:
        await super().put(auth, key[:MAX_KEY_CHARS], value, metadata=metadata)


class TestCutsLongKeys(BrokenMemory):
    broken = CutsLongKeys
    caught_by = frozenset(
        {
            "test_a_key_or_value_over_its_limit_is_refused",
        }
    )


class CutsLongValues(InprocMemory):
    async def put(self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None) -> None:
        most = self.capabilities.max_value_bytes - 2
        await super().put(auth, key, value[:most] if isinstance(value, str) else value, metadata=metadata)


class TestCutsLongValues(BrokenMemory):
    broken = CutsLongValues
    caught_by = frozenset(
        {
            "test_a_key_or_value_over_its_limit_is_refused",
        }
    )


class TestLosesEverythingAtReopen(BrokenMemory):
    forgetful = True
    caught_by = frozenset(
        {
            "test_what_was_put_is_there_for_a_port_opened_anew",
        }
    )
