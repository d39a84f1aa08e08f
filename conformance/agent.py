"""What every AgentRegistry must show. Clauses: `ports.agent`."""

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import AgentHarness
from conformance.people import ACME, FOREIGNERS, Foreigner
from ports.agent import Agent, AgentLimits, AgentSpec, digest_of
from ports.cursor import encode_cursor
from ports.errors import InvalidArgument, NotFound
from ports.ids import AgentId

SPEC = AgentSpec(
    id=AgentId("agt_helper"),
    description="Answers questions.",
    instructions="Be brief. “Naïve” questions are welcome.",
    model="demo-1",
    tools=("calculator", "clock"),
    limits=AgentLimits(max_steps=7, max_cost_nanousd=10**12),
)
CHANGED = replace(SPEC, instructions="Be very brief.")
ABSENT = AgentId("agt_nobody")


@pytest.mark.anyio
class AgentContract(Contract):
    @clause("AGT-1")
    async def test_a_new_agent_is_version_1(self, harness: AgentHarness) -> None:
        agents = await harness.open()

        agent = await agents.publish(ACME, SPEC)

        assert (agent.spec, agent.version, agent.digest) == (SPEC, 1, digest_of(SPEC))
        assert await agents.get(ACME, SPEC.id) == agent

    @clause("AGT-1", "AGT-3")
    async def test_a_changed_spec_is_the_next_version_and_leaves_the_old_one(self, harness: AgentHarness) -> None:
        agents = await harness.open()
        first = await agents.publish(ACME, SPEC)

        second = await agents.publish(ACME, CHANGED)

        assert (second.spec, second.version) == (CHANGED, 2)
        assert await agents.get(ACME, SPEC.id) == second
        assert await agents.get(ACME, SPEC.id, 2) == second
        assert await agents.get(ACME, SPEC.id, 1) == first

    @clause("AGT-1")
    async def test_racing_publishers_get_versions_of_their_own(self, harness: AgentHarness) -> None:
        agents = await harness.open()
        published: list[Agent] = []

        async def publish(n: int) -> None:
            published.append(await agents.publish(ACME, replace(SPEC, instructions=f"Variant {n}.")))

        async with anyio.create_task_group() as group:
            for n in range(8):
                group.start_soon(publish, n)

        assert sorted(agent.version for agent in published) == list(range(1, 9))
        for agent in published:
            assert await agents.get(ACME, SPEC.id, agent.version) == agent

    @clause("AGT-1")
    async def test_what_was_published_is_there_for_a_registry_opened_anew(self, harness: AgentHarness) -> None:
        agents = await harness.open()
        first = await agents.publish(ACME, SPEC)
        second = await agents.publish(ACME, CHANGED)

        reopened = await harness.reopen()

        assert await reopened.get(ACME, SPEC.id, 1) == first
        assert await reopened.get(ACME, SPEC.id) == second

    @clause("AGT-2")
    async def test_publishing_the_newest_again_stores_nothing(self, harness: AgentHarness) -> None:
        agents = await harness.open()
        await agents.publish(ACME, SPEC)
        newest = await agents.publish(ACME, CHANGED)
        await harness.advance(newest.created_at.resolution * 1_000)

        again = await agents.publish(ACME, CHANGED)

        assert again == newest
        with pytest.raises(NotFound):
            await agents.get(ACME, SPEC.id, 3)

    @clause("AGT-4")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_a_foreign_agent_is_refused_like_an_absent_one(
        self, harness: AgentHarness, foreigner: Foreigner
    ) -> None:
        agents = await harness.open()
        await agents.publish(ACME, SPEC)

        for version in (None, 1):
            texts = set()
            for agent_id in (SPEC.id, ABSENT):
                with pytest.raises(NotFound) as refusal:
                    await agents.get(foreigner.auth, agent_id, version)
                texts.add(refusal.value.message.replace(agent_id, "…"))
            assert len(texts) == 1, version

    @clause("AGT-4")
    @pytest.mark.parametrize("version", [0, -1, 2, 2**40])
    async def test_an_absent_version_is_not_found(self, harness: AgentHarness, version: int) -> None:
        agents = await harness.open()
        await agents.publish(ACME, SPEC)

        with pytest.raises(NotFound):
            await agents.get(ACME, SPEC.id, version)

    @clause("AGT-1", "AGT-4")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_an_equal_id_elsewhere_is_another_agent(self, harness: AgentHarness, foreigner: Foreigner) -> None:
        agents = await harness.open()
        mine = await agents.publish(ACME, SPEC)

        theirs = await agents.publish(foreigner.auth, CHANGED)

        assert theirs.version == 1
        assert await agents.get(foreigner.auth, SPEC.id) == theirs
        assert await agents.get(ACME, SPEC.id) == mine

    @clause("AGT-5")
    async def test_a_listing_gives_the_newest_version_of_each_by_id_in_pages(self, harness: AgentHarness) -> None:
        agents = await harness.open()
        names = ["agt_d", "agt_b", "agt_e", "agt_a", "agt_c"]
        for name in names:
            await agents.publish(ACME, replace(SPEC, id=AgentId(name)))
        newest = await agents.publish(ACME, replace(CHANGED, id=AgentId("agt_b")))
        for foreigner in FOREIGNERS:
            await agents.publish(foreigner.auth, replace(SPEC, id=AgentId("agt_foreign")))
        listed: list[Agent] = []

        page = await agents.list_agents(ACME, limit=2)
        listed += page.items
        while page.next_cursor is not None:
            page = await agents.list_agents(ACME, limit=2, cursor=page.next_cursor)
            assert len(page.items) <= 2
            listed += page.items

        assert [agent.spec.id for agent in listed] == sorted(names)
        assert listed[1] == newest

    @clause("AGT-5")
    @pytest.mark.parametrize("cursor", ["", "nonsense", "\x00", encode_cursor("somewhere else", ["agt_a"])])
    async def test_a_cursor_that_can_not_be_ours_is_refused(self, harness: AgentHarness, cursor: str) -> None:
        agents = await harness.open()

        with pytest.raises(InvalidArgument):
            await agents.list_agents(ACME, limit=1, cursor=cursor)
