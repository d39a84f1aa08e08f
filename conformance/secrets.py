"""What every store of secrets must show. Clauses: `ports.secrets`."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import SecretsHarness
from conformance.people import ACME
from ports.errors import AgentOSError, InvalidArgument, NotFound, Unavailable, Unsupported
from ports.secrets import MAX_SECRET_BYTES, SecretsPort

CANARY: Final = "canary-9f2c4e71"
OTHER: Final = "canary-5b80d3aa"

NO_NAMES: Final = (
    "", " ", "/", "a/", "/a", "a//b", "../a", "a/../b", ".a", "a b", "a\x00", "a\n", "ä", "a#", "a#b#c", "a@", "a@0",
    "a@-1", "a@1.5", "a@" + "9" * 20, "a?version=1", "a%2fb", "a" * 300, "/etc/passwd", "-a", f"{CANARY} {CANARY}",
)  # fmt: skip


def texts_of(error: BaseException | None) -> str:
    """What an error and all that led to it say."""
    found: list[str] = []
    while error is not None:
        found += [str(error), repr(error), repr(getattr(error, "details", ""))]
        error = error.__cause__ or error.__context__
    return " ".join(found)


async def refusal_of(port: SecretsPort, name: str) -> AgentOSError:
    with pytest.raises(AgentOSError) as refusal:
        await port.read(ACME, name)
    return refusal.value


async def later(harness: SecretsHarness, port: SecretsPort) -> None:
    """What was read before may not be given out any more."""
    await harness.advance(port.capabilities.fresh_for)


@pytest.mark.anyio
class SecretsContract(Contract):
    @clause("SEC-1")
    async def test_a_name_stands_for_what_was_put_there(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)
        await harness.put("team/provider", f"  {OTHER}\n")

        assert (await port.read(ACME, "provider")).reveal() == CANARY
        assert (await port.read(ACME, "team/provider")).reveal() == OTHER

    @clause("SEC-1")
    async def test_abilities_are_those_that_are_declared(self, harness: SecretsHarness) -> None:
        assert (await harness.open()).capabilities == harness.declared

    @clause("SEC-2")
    async def test_a_name_that_leads_nowhere_is_not_found_and_told(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)

        for name in ("absent", "provider/absent", "team/absent"):
            refusal = await refusal_of(port, name)
            assert isinstance(refusal, NotFound)
            assert name in refusal.message

    @clause("SEC-2")
    async def test_what_was_removed_is_not_found(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)
        await port.read(ACME, "provider")

        await harness.remove("provider")
        await later(harness, port)

        assert isinstance(await refusal_of(port, "provider"), NotFound)

    @clause("SEC-3")
    @pytest.mark.parametrize("text", NO_NAMES)
    async def test_what_is_no_name_is_refused_and_not_repeated(self, harness: SecretsHarness, text: str) -> None:
        port = await harness.open()

        refusal = await refusal_of(port, text)

        assert isinstance(refusal, InvalidArgument)
        assert CANARY not in texts_of(refusal)

    @clause("SEC-4")
    async def test_a_changed_value_is_seen_under_another_version(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)
        before = await port.read(ACME, "provider")

        await harness.put("provider", OTHER)
        await later(harness, port)
        after = await port.read(ACME, "provider")

        assert (after.reveal(), after.version != before.version) == (OTHER, True)

    @clause("SEC-4")
    async def test_what_did_not_change_keeps_its_version(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)
        before = await port.read(ACME, "provider")

        await harness.put("another", OTHER)
        await later(harness, port)

        assert (await port.read(ACME, "provider")).version == before.version

    @clause("SEC-5")
    async def test_a_secret_shows_itself_by_reveal_only(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)

        secret = await port.read(ACME, "provider")

        for shown in (
            repr(secret),
            str(secret),
            f"{secret}",
            f"{secret!s:>40}",
            "{}".format(secret),  # noqa: UP032  # the old way is a way too
            secret.version,
            repr(port),
        ):
            assert CANARY not in shown
        writers: tuple[Callable[[Any], Any], ...] = (pickle.dumps, copy.copy, msgspec.json.encode, msgspec.to_builtins)
        for write in writers:
            with pytest.raises(TypeError):
                write(secret)

    @clause("SEC-6")
    async def test_a_store_that_is_away_gives_nothing(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)
        await port.read(ACME, "provider")

        await harness.go_away()
        await later(harness, port)
        refusals = [await refusal_of(port, name) for name in ("provider", "absent")]

        assert all(isinstance(one, Unavailable) for one in refusals)
        assert CANARY not in "".join(texts_of(one) for one in refusals)

    @clause("SEC-7")
    async def test_an_earlier_version_is_read_where_there_are_versions(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", CANARY)
        await harness.put("provider", OTHER)

        if not port.capabilities.versions:
            assert isinstance(await refusal_of(port, "provider@1"), Unsupported)
            return
        assert (await port.read(ACME, "provider@1")).reveal() == CANARY
        assert (await port.read(ACME, "provider@2")).reveal() == OTHER
        assert isinstance(await refusal_of(port, "provider@3"), NotFound)

    @clause("SEC-8")
    @pytest.mark.parametrize("value", ["", " \n", "a\x00b", "a\x1bb", "x" * (MAX_SECRET_BYTES + 1)])
    async def test_a_value_that_can_not_be_used_is_refused(self, harness: SecretsHarness, value: str) -> None:
        port = await harness.open()
        await harness.put("provider", value)

        assert isinstance(await refusal_of(port, "provider"), InvalidArgument)

    @clause("SEC-8")
    async def test_a_value_of_many_lines_or_of_the_greatest_size_is_fine(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("pem", "-----BEGIN KEY-----\n\tabc\r\n-----END KEY-----\n")
        await harness.put("great", "x" * MAX_SECRET_BYTES)

        assert (await port.read(ACME, "pem")).reveal().splitlines()[1] == "\tabc"
        assert len((await port.read(ACME, "great")).reveal()) == MAX_SECRET_BYTES

    @clause("SEC-9")
    async def test_no_error_tells_a_value(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        await harness.put("provider", f"{CANARY}\x00")
        await harness.put("great", CANARY * MAX_SECRET_BYTES)
        names = ("provider", "great", "provider@7", "provider#absent", "absent")

        said = [texts_of(await refusal_of(port, name)) for name in names]

        assert [name for name, text in zip(names, said, strict=True) if CANARY in text] == []

    @clause("SEC-10")
    async def test_a_field_is_read_where_there_are_fields(self, harness: SecretsHarness) -> None:
        port = await harness.open()
        if not port.capabilities.fields:
            await harness.put("provider", CANARY)
            assert isinstance(await refusal_of(port, "provider#user"), Unsupported)
            return
        await harness.put("provider", CANARY, user=OTHER)

        assert (await port.read(ACME, "provider#user")).reveal() == OTHER
        assert (await port.read(ACME, "provider#value")).reveal() == CANARY
        assert isinstance(await refusal_of(port, "provider#absent"), NotFound)
