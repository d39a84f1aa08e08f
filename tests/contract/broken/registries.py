"""Broken agent registries."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import agent
from adapters.inproc.agent import InprocAgents
from adapters.inproc.store import Store, store
from conformance.agent import AgentContract
from ports.agent import Agent, AgentRegistry, AgentSpec, digest_of
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound
from ports.ids import AgentId, TenantId
from ports.messages import Page
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing


class BrokenAgentHarness(InprocHarness[AgentRegistry]):
    def __init__(self, broken: type[InprocAgents], *, forgetful: bool) -> None:
        super().__init__(agent.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> AgentRegistry:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> AgentRegistry:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenAgents(Mutant, AgentContract):
    broken: ClassVar[type[InprocAgents]] = InprocAgents
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenAgentHarness]:
        async with closing(BrokenAgentHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenAgents):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class RewritesOldVersions(InprocAgents):
    async def publish(self, auth: AuthContext, spec: AgentSpec) -> Agent:
        made = await super().publish(auth, spec)
        versions = self._rows[auth.tenant, auth.namespace, spec.id]
        versions[0] = replace(versions[0], spec=made.spec, digest=made.digest)
        return made


class TestRewritesOldVersions(BrokenAgents):
    broken = RewritesOldVersions
    caught_by = frozenset(
        {
            "test_a_changed_spec_is_the_next_version_and_leaves_the_old_one",
            "test_racing_publishers_get_versions_of_their_own",
            "test_what_was_published_is_there_for_a_registry_opened_anew",
        }
    )


class CountsThenPublishes(InprocAgents):
    """Others publish between its count and its write."""

    async def publish(self, auth: AuthContext, spec: AgentSpec) -> Agent:
        versions = self._rows.setdefault((auth.tenant, auth.namespace, spec.id), [])
        if versions and versions[-1].digest == digest_of(spec):
            return versions[-1]
        number = len(versions) + 1
        await self._clock.sleep(timedelta(0))
        made = Agent(spec=spec, version=number, digest=digest_of(spec), created_at=self._clock.now())
        versions.append(made)
        return made


class TestCountsThenPublishes(BrokenAgents):
    broken = CountsThenPublishes
    caught_by = frozenset(
        {
            "test_racing_publishers_get_versions_of_their_own",
        }
    )


class PublishesTheSameAgain(InprocAgents):
    async def publish(self, auth: AuthContext, spec: AgentSpec) -> Agent:
        versions = self._rows.setdefault((auth.tenant, auth.namespace, spec.id), [])
        made = Agent(spec=spec, version=len(versions) + 1, digest=digest_of(spec), created_at=self._clock.now())
        versions.append(made)
        return made


class TestPublishesTheSameAgain(BrokenAgents):
    broken = PublishesTheSameAgain
    caught_by = frozenset(
        {
            "test_publishing_the_newest_again_stores_nothing",
        }
    )


class GetsTheFirstVersion(InprocAgents):
    async def get(self, auth: AuthContext, agent_id: AgentId, version: int | None = None) -> Agent:
        return await super().get(auth, agent_id, 1 if version is None else version)


class TestGetsTheFirstVersion(BrokenAgents):
    broken = GetsTheFirstVersion
    caught_by = frozenset(
        {
            "test_a_changed_spec_is_the_next_version_and_leaves_the_old_one",
            "test_what_was_published_is_there_for_a_registry_opened_anew",
        }
    )


class GetsTheNewestForAnAbsentVersion(InprocAgents):
    async def get(self, auth: AuthContext, agent_id: AgentId, version: int | None = None) -> Agent:
        try:
            return await super().get(auth, agent_id, version)
        except NotFound:
            return await super().get(auth, agent_id)


class TestGetsTheNewestForAnAbsentVersion(BrokenAgents):
    broken = GetsTheNewestForAnAbsentVersion
    caught_by = frozenset(
        {
            "test_publishing_the_newest_again_stores_nothing",
            "test_an_absent_version_is_not_found",
        }
    )


class TellsForeignFromAbsent(InprocAgents):
    async def get(self, auth: AuthContext, agent_id: AgentId, version: int | None = None) -> Agent:
        if any(key[2] == agent_id and key[:2] != (auth.tenant, auth.namespace) for key in self._rows):
            raise NotFound(f"agent {agent_id!r} is not yours")
        return await super().get(auth, agent_id, version)


class TestTellsForeignFromAbsent(BrokenAgents):
    broken = TellsForeignFromAbsent
    caught_by = frozenset(
        {
            "test_an_equal_id_elsewhere_is_another_agent",
            "test_a_foreign_agent_is_refused_like_an_absent_one",
        }
    )


class OneRegistryForAll(InprocAgents):
    async def publish(self, auth: AuthContext, spec: AgentSpec) -> Agent:
        return await super().publish(replace(auth, tenant=TenantId("tnt_one"), namespace="all"), spec)

    async def get(self, auth: AuthContext, agent_id: AgentId, version: int | None = None) -> Agent:
        return await super().get(replace(auth, tenant=TenantId("tnt_one"), namespace="all"), agent_id, version)

    async def list_agents(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Agent]:
        everybody = replace(auth, tenant=TenantId("tnt_one"), namespace="all")
        return await super().list_agents(everybody, limit=limit, cursor=cursor)


class TestOneRegistryForAll(BrokenAgents):
    broken = OneRegistryForAll
    caught_by = frozenset(
        {
            "test_an_equal_id_elsewhere_is_another_agent",
            "test_a_foreign_agent_is_refused_like_an_absent_one",
            "test_a_listing_gives_the_newest_version_of_each_by_id_in_pages",
        }
    )


class ListsBackwards(InprocAgents):
    async def list_agents(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Agent]:
        page = await super().list_agents(auth, limit=limit, cursor=cursor)
        return replace(page, items=page.items[::-1])


class TestListsBackwards(BrokenAgents):
    broken = ListsBackwards
    caught_by = frozenset(
        {
            "test_a_listing_gives_the_newest_version_of_each_by_id_in_pages",
        }
    )


class TakesAnyCursor(InprocAgents):
    async def list_agents(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Agent]:
        try:
            return await super().list_agents(auth, limit=limit, cursor=cursor)
        except InvalidArgument:
            return await super().list_agents(auth, limit=limit)


class TestTakesAnyCursor(BrokenAgents):
    broken = TakesAnyCursor
    caught_by = frozenset(
        {
            "test_a_cursor_that_can_not_be_ours_is_refused",
        }
    )


class TestLosesEverythingAtReopen(BrokenAgents):
    forgetful = True
    caught_by = frozenset(
        {
            "test_what_was_published_is_there_for_a_registry_opened_anew",
        }
    )
