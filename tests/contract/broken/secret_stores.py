"""Broken stores of secrets."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from msgspec import Struct

from adapters.inproc import secrets as inproc_secrets
from adapters.inproc.secrets import InprocSecrets
from adapters.inproc.store import Store, store
from conformance.secrets import SecretsContract
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, NotFound, Unavailable
from ports.secrets import Secret, SecretCapabilities, SecretsPort, parse_name
from tests.contract.broken.mutant import Mutant
from tests.contract.test_secrets import InprocSecretsHarness
from tests.support.inproc import closing


class BrokenSecretsHarness(InprocSecretsHarness):
    def __init__(self, broken: type[InprocSecrets]) -> None:
        super().__init__()
        self._broken = broken

    @property
    def declared(self) -> Struct:
        return inproc_secrets.capabilities()

    async def open(self) -> SecretsPort:
        return self._broken(store(self.config.name))


class BrokenSecrets(Mutant, SecretsContract):
    broken: ClassVar[type[InprocSecrets]] = InprocSecrets

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenSecretsHarness]:
        async with closing(BrokenSecretsHarness(self.broken)) as harness:
            yield harness


class TestIsHonest(BrokenSecrets):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class DeclaresMore(InprocSecrets):
    @property
    def capabilities(self) -> SecretCapabilities:
        return SecretCapabilities(versions=True, fields=False)


class TestDeclaresMore(BrokenSecrets):
    """What it can do is not what it says: neither at its place, nor when it is asked."""

    broken = DeclaresMore
    caught_by = frozenset({"test_abilities_are_those_that_are_declared", "test_a_field_is_read_where_there_are_fields"})


class KnowsOnePath(InprocSecrets):
    """Sees the last part of a name only."""

    async def read(self, auth: AuthContext, name: str) -> Secret:
        parse_name(name)
        return await super().read(auth, name.rpartition("/")[2])


class TestKnowsOnePath(BrokenSecrets):
    broken = KnowsOnePath
    caught_by = frozenset(
        {"test_a_name_stands_for_what_was_put_there", "test_a_name_that_leads_nowhere_is_not_found_and_told"}
    )


class AbsentIsNoName(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        try:
            return await super().read(auth, name)
        except NotFound as error:
            raise InvalidArgument(error.message) from error


class TestAbsentIsNoName(BrokenSecrets):
    broken = AbsentIsNoName
    caught_by = frozenset(
        {
            "test_a_name_that_leads_nowhere_is_not_found_and_told",
            "test_what_was_removed_is_not_found",
            "test_an_earlier_version_is_read_where_there_are_versions",
            "test_a_field_is_read_where_there_are_fields",
        }
    )


class QuotesWhatItWasGiven(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        try:
            parse_name(name)
        except InvalidArgument as error:
            raise InvalidArgument(f"{name!r} is no name") from error
        return await super().read(auth, name)


class TestQuotesWhatItWasGiven(BrokenSecrets):
    broken = QuotesWhatItWasGiven
    caught_by = frozenset({"test_what_is_no_name_is_refused_and_not_repeated"})


class RemembersForEver(InprocSecrets):
    def __init__(self, storage: Store) -> None:
        super().__init__(storage)
        self._seen: dict[str, Secret] = {}

    async def read(self, auth: AuthContext, name: str) -> Secret:
        if name not in self._seen:
            self._seen[name] = await super().read(auth, name)
        return self._seen[name]


class TestRemembersForEver(BrokenSecrets):
    broken = RemembersForEver
    caught_by = frozenset(
        {
            "test_what_was_removed_is_not_found",
            "test_a_changed_value_is_seen_under_another_version",
            "test_a_store_that_is_away_gives_nothing",
        }
    )


class CountsReads(InprocSecrets):
    _reads: ClassVar[list[str]] = []

    async def read(self, auth: AuthContext, name: str) -> Secret:
        found = await super().read(auth, name)
        self._reads.append(name)
        return Secret(found.reveal(), version=str(len(self._reads)))


class TestCountsReads(BrokenSecrets):
    broken = CountsReads
    caught_by = frozenset({"test_what_did_not_change_keeps_its_version"})


class Chatty(Secret):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"<secret {self.reveal()}>"


class ShowsWhatItHas(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        found = await super().read(auth, name)
        return Chatty(found.reveal(), version=found.version)


class TestShowsWhatItHas(BrokenSecrets):
    broken = ShowsWhatItHas
    caught_by = frozenset({"test_a_secret_shows_itself_by_reveal_only"})


class IsAbsentWhenAway(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        try:
            return await super().read(auth, name)
        except Unavailable as error:
            raise NotFound(f"there is no secret {name!r}") from error


class TestIsAbsentWhenAway(BrokenSecrets):
    broken = IsAbsentWhenAway
    caught_by = frozenset({"test_a_store_that_is_away_gives_nothing"})


class HasTheNewestOnly(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        parse_name(name)
        return await super().read(auth, name.partition("@")[0])


class TestHasTheNewestOnly(BrokenSecrets):
    """A version that is not there is not missed either."""

    broken = HasTheNewestOnly
    caught_by = frozenset({"test_an_earlier_version_is_read_where_there_are_versions"})


class TakesAnything(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        try:
            return await super().read(auth, name)
        except InvalidArgument:
            parse_name(name)
            [*_, newest] = self._table.versions[name]
            return Secret(newest["value"], version="1")


class TestTakesAnything(BrokenSecrets):
    broken = TakesAnything
    caught_by = frozenset({"test_a_value_that_can_not_be_used_is_refused", "test_no_error_tells_a_value"})


class TakesLinesOnly(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        found = await super().read(auth, name)
        if "\n" in found.reveal():
            raise InvalidArgument(f"the secret {name!r} has more than one line")
        return found


class TestTakesLinesOnly(BrokenSecrets):
    broken = TakesLinesOnly
    caught_by = frozenset({"test_a_value_of_many_lines_or_of_the_greatest_size_is_fine"})


class TellsWhatItFound(InprocSecrets):
    async def read(self, auth: AuthContext, name: str) -> Secret:
        try:
            return await super().read(auth, name)
        except AgentOSError as error:
            versions = self._table.versions.get(name.partition("@")[0], [])
            raise error from ValueError(str(versions))


class TestTellsWhatItFound(BrokenSecrets):
    broken = TellsWhatItFound
    caught_by = frozenset({"test_no_error_tells_a_value", "test_a_store_that_is_away_gives_nothing"})
