"""What every Memory adapter must show. Clauses: `ports.memory`."""

import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import MemoryHarness
from conformance.people import ACME, FOREIGNERS, Foreigner
from ports.errors import InvalidArgument
from ports.memory import MAX_KEY_CHARS, MAX_MATCHES, MemoryPort


async def found(memory: MemoryPort, query: str, metadata: dict[str, str] | None = None) -> list[str]:
    """Keys of what a search of ACME's finds, best first."""
    return [match.item.key for match in await memory.search(ACME, query, metadata=metadata)]


@pytest.mark.anyio
class MemoryContract(Contract):
    async def test_the_capabilities_are_those_the_spec_declares(self, harness: MemoryHarness) -> None:
        memory = await harness.open()

        assert memory.capabilities == harness.declared

    @clause("MEM-1")
    @pytest.mark.parametrize(
        "value",
        [
            "a text",
            {"nested": [1, 2.5, None, True, "naïve \U0001f600"]},
            [],
            None,
            0,
        ],
    )
    async def test_what_was_put_is_got(self, harness: MemoryHarness, value: object) -> None:
        memory = await harness.open()

        await memory.put(ACME, "k1", value, metadata={"kind": "note"})

        item = await memory.get(ACME, "k1")
        assert item is not None
        assert (item.key, item.value, item.metadata) == ("k1", value, {"kind": "note"})
        assert item.updated_at.utcoffset() is not None

    @clause("MEM-1")
    async def test_putting_again_replaces_value_and_metadata(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "the old walrus", metadata={"kind": "note", "by": "ann"})

        await memory.put(ACME, "k1", "the new penguin", metadata={"kind": "fact"})

        item = await memory.get(ACME, "k1")
        assert item is not None
        assert (item.value, item.metadata) == ("the new penguin", {"kind": "fact"})
        assert await found(memory, "walrus") == []
        assert await found(memory, "penguin", {"by": "ann"}) == []

    @clause("MEM-1")
    async def test_what_a_caller_does_to_its_value_afterwards_reaches_nothing(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        value = {"list": ["as put"]}
        await memory.put(ACME, "k1", value)

        value["list"].append("later")
        got = await memory.get(ACME, "k1")
        assert got is not None
        got.value["list"].append("later still")

        again = await memory.get(ACME, "k1")
        assert again is not None
        assert again.value == {"list": ["as put"]}

    @clause("MEM-2")
    async def test_an_absent_key_gives_none(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "text")

        assert await memory.get(ACME, "k2") is None

    @clause("MEM-3")
    async def test_search_finds_items_that_share_words(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "The invoice for Globex is due in March.")
        await memory.put(ACME, "k2", "Penguins live in the south.")

        assert await found(memory, "invoice") == ["k1"]
        assert await found(memory, "penguins") == ["k2"]
        assert await found(memory, "xylophone") == []

    @clause("MEM-3")
    async def test_case_and_punctuation_do_not_matter(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "Invoice: (Globex), ÄRGER!")

        for query in ("INVOICE", "invoice?", "'globex'", "ärger", "(invoice) & | ! : * \\ globex"):
            assert await found(memory, query) == ["k1"], query

    @clause("MEM-3")
    async def test_search_finds_the_words_inside_structured_values(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", {"title": "Minutes", "points": ["walrus budget", {"who": "Zacharias"}]})

        assert await found(memory, "walrus") == ["k1"]
        assert await found(memory, "zacharias") == ["k1"]

    @clause("MEM-3")
    async def test_search_gives_the_best_first(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "walrus alpha")
        await memory.put(ACME, "k2", "walrus penguin")
        await memory.put(ACME, "k3", "alpha beta")

        matches = await memory.search(ACME, "walrus penguin")

        assert [match.item.key for match in matches] == ["k2", "k1"]
        assert matches[0].score > matches[1].score
        assert matches[0].item.value == "walrus penguin"

    @clause("MEM-3")
    async def test_search_gives_no_more_than_asked_for(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        for n in range(5):
            await memory.put(ACME, f"k{n}", f"walrus {n}")

        assert len(await memory.search(ACME, "walrus", limit=3)) == 3
        assert len(await memory.search(ACME, "walrus", limit=MAX_MATCHES)) == 5

    @clause("MEM-3")
    @pytest.mark.parametrize("query", ["", "   ", "?!", "\x00", "'", "a & ", "%", "\\"])
    async def test_a_query_without_words_finds_nothing(self, harness: MemoryHarness, query: str) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "walrus")

        assert await found(memory, query) == []

    @clause("MEM-4")
    async def test_search_with_metadata_finds_items_that_hold_all_pairs(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "walrus", metadata={"kind": "note", "by": "ann", "more": "yes"})
        await memory.put(ACME, "k2", "walrus", metadata={"kind": "note", "by": "ben"})
        await memory.put(ACME, "k3", "walrus")

        assert await found(memory, "walrus", {"kind": "note", "by": "ann"}) == ["k1"]
        assert sorted(await found(memory, "walrus", {"kind": "note"})) == ["k1", "k2"]
        assert await found(memory, "walrus", {"kind": "ann"}) == []
        assert sorted(await found(memory, "walrus", {})) == ["k1", "k2", "k3"]

    @clause("MEM-5")
    async def test_a_forgotten_item_is_neither_got_nor_found(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "walrus")
        await memory.put(ACME, "k2", "walrus")

        there = await memory.forget(ACME, "k1")
        again = await memory.forget(ACME, "k1")

        assert (there, again) == (True, False)
        assert await memory.get(ACME, "k1") is None
        assert await found(memory, "walrus") == ["k2"]

    @clause("MEM-6")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_equal_keys_elsewhere_are_other_items(self, harness: MemoryHarness, foreigner: Foreigner) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "walrus of mine")

        assert await memory.get(foreigner.auth, "k1") is None
        assert await memory.search(foreigner.auth, "walrus") == ()
        assert await memory.forget(foreigner.auth, "k1") is False

        await memory.put(foreigner.auth, "k1", "walrus of theirs")
        mine = await memory.get(ACME, "k1")
        assert mine is not None
        assert mine.value == "walrus of mine"
        [match] = await memory.search(ACME, "walrus")
        assert match.item.value == "walrus of mine"

    @clause("MEM-7")
    async def test_a_key_or_value_over_its_limit_is_refused(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        most = memory.capabilities.max_value_bytes
        await memory.put(ACME, "k" * MAX_KEY_CHARS, "x" * (most - 2))

        for key in ("k" * (MAX_KEY_CHARS + 1), "", "a\x00b", "a\ud800b"):
            with pytest.raises(InvalidArgument):
                await memory.put(ACME, key, "text")
        with pytest.raises(InvalidArgument):
            await memory.put(ACME, "k1", "x" * (most - 1))

        assert await memory.get(ACME, "k1") is None

    @clause("MEM-8")
    async def test_what_was_put_is_there_for_a_port_opened_anew(self, harness: MemoryHarness) -> None:
        memory = await harness.open()
        await memory.put(ACME, "k1", "walrus", metadata={"kind": "note"})
        before = await memory.get(ACME, "k1")

        reopened = await harness.reopen()

        assert await reopened.get(ACME, "k1") == before
        assert await found(reopened, "walrus", {"kind": "note"}) == ["k1"]
