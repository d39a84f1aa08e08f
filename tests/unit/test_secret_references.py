"""References: what one is, who reads it, what is told of it, and what looks like a secret where a reference should be."""

import logging
from pathlib import Path
from typing import Any, Final

import pytest

from adapters.file_secrets import FileSecrets, FileSecretsConfig
from adapters.inproc.secrets import InprocSecrets, Secrets
from adapters.inproc.store import drop, store
from deploy.roots.secret_references import References, check_secret, secrets_of_a_node
from observability.secrets import WatchedReads
from ports.errors import AgentOSError, InvalidArgument, NotFound, Unavailable
from ports.secrets import Secret, is_reference
from stack_b.backends.known_secrets import KnownSecrets
from stack_b.backends.plain_secrets import plain_secrets
from stack_b.backends.settings import BackendSettings, check_settings
from stack_b.following import FOLLOWER

CANARY: Final = "sk-canary-0123456789abcdef"

pytestmark = pytest.mark.anyio


@pytest.fixture
def table() -> Any:
    yield store("references").table(Secrets)
    drop("references")


def reading(variables: dict[str, str] | None = None) -> References:
    return References(variables or {}, InprocSecrets(store("references")), FOLLOWER)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("env:A", True), ("file:/a", True), ("secret:a", True), ("secret:a/b#c@1", True), ("", False), (CANARY, False),
     ("env:", False), ("env:A B", False), ("file:a", False), ("file:", False), ("secret:", False), ("secret:../a", False),
     ("vault:a", False), ("ENV:A", False), (" env:A", False)],
)  # fmt: skip
def test_a_reference_is_one_of_three_kinds(text: str, is_one: bool) -> None:
    assert is_reference(text) is is_one
    if not is_one:
        with pytest.raises(InvalidArgument) as refusal:
            check_secret(text, {})
        assert CANARY not in refusal.value.message


async def test_each_kind_is_read_where_it_is(tmp_path: Path, table: Secrets) -> None:
    (tmp_path / "key").write_text("from a file\n")
    table.put("key", {"value": "from the store"})
    references = reading({"KEY": "from a variable"})

    found = [(await references.read(one)).reveal() for one in ("env:KEY", f"file:{tmp_path}/key", "secret:key")]

    assert found == ["from a variable", "from a file", "from the store"]


async def test_a_file_that_changed_has_another_version(tmp_path: Path, table: Secrets) -> None:
    del table
    place = tmp_path / "key"
    place.write_text("one")
    before = await reading().read(f"file:{place}")
    place.write_text("another")

    assert (await reading().read(f"file:{place}")).version != before.version


class TestKnown:
    async def test_what_changed_is_known_by_another_mark(self, table: Secrets) -> None:
        table.put("key", {"value": "one"})
        known = KnownSecrets(reading().read)
        first, again = await known.learn(["secret:key"]), await known.learn(["secret:key", "secret:key"])
        table.put("key", {"value": "two"})
        rotated = await known.learn(["secret:key"])

        assert (first == again, first != rotated, known("secret:key")) == (True, True, "two")

    async def test_one_that_can_not_be_read_is_refused_when_used_and_not_before(self, table: Secrets) -> None:
        table.put("key", {"value": "one"})
        known = KnownSecrets(reading().read)
        before = await known.learn(["secret:key", "secret:absent"])
        with pytest.raises(InvalidArgument, match="absent"):
            known("secret:absent")
        assert known("secret:key") == "one"

        table.away = True

        assert await known.learn(["secret:key", "secret:absent"]) != before
        with pytest.raises(InvalidArgument, match="does not answer"):
            known("secret:key")

    async def test_what_nobody_asked_for_is_not_known(self, table: Secrets) -> None:
        table.put("key", {"value": "one"})
        known = KnownSecrets(reading().read)
        await known.learn(["secret:key"])
        await known.learn([])

        with pytest.raises(InvalidArgument):
            known("secret:key")


class TestWatched:
    async def test_a_read_is_told_when_it_is_new_and_never_with_the_value(
        self, caplog: pytest.LogCaptureFixture, table: Secrets
    ) -> None:
        counted: list[tuple[str, str]] = []
        watched = WatchedReads(reading().read, FOLLOWER, lambda kind, code: counted.append((kind, code)))
        table.put("key", {"value": CANARY})
        with caplog.at_level(logging.INFO, logger="agentos.secrets"):
            for _ in range(2):
                await watched.read("secret:key")
            table.put("key", {"value": CANARY + "2"})
            await watched.read("secret:key")
            table.away = True
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await watched.read("secret:key")

        said = [(one.msg, one.__dict__["reference"], one.__dict__["principal"]) for one in caplog.records]
        assert said == [("secret.read", "secret:key", "svc_stack_b")] * 2 + [
            ("secret.unreadable", "secret:key", "svc_stack_b")
        ]
        assert CANARY not in str([one.__dict__ for one in caplog.records])
        assert counted == [("secret", "ok")] * 3 + [("secret", "unavailable")] * 2

    async def test_what_is_no_reference_is_counted_and_not_repeated(self, caplog: pytest.LogCaptureFixture) -> None:
        counted: list[tuple[str, str]] = []
        watched = WatchedReads(reading().read, FOLLOWER, lambda kind, code: counted.append((kind, code)))
        with caplog.at_level(logging.DEBUG), pytest.raises(InvalidArgument):
            await watched.read(CANARY)

        assert (caplog.records, counted) == ([], [("none", "invalid_request")])


class TestAStoreIsChosen:
    def test_without_a_word_it_is_the_nodes_directory(self) -> None:
        choice = secrets_of_a_node("", "/somewhere")

        assert (choice.adapter, choice.config) == ("files", {"directory": "/somewhere"})

    @pytest.mark.parametrize(
        "text",
        ["{", "[]", '{"adapter": "nobody"}', '{"adapter": "kv"}', '{"adapter": "kv", "config": {"url": "https://v"}}',
         '{"adapter": "kv", "config": {"url": "http://v.example", "token_file": "/t"}}',
         '{"adapter": "files", "config": {"folder": "/x"}}'],
    )  # fmt: skip
    def test_what_can_not_be_meant_is_told_before_anything_starts(self, text: str) -> None:
        with pytest.raises(InvalidArgument, match="AGENTOS_SECRETS"):
            secrets_of_a_node(text, "")

    async def test_a_process_without_a_directory_reads_no_file_at_all(self) -> None:
        with pytest.raises(AgentOSError) as refusal:
            await FileSecrets(FileSecretsConfig(directory="")).read(FOLLOWER, "pyproject.toml")

        assert not isinstance(refusal.value, NotFound)


class TestPlainSecrets:
    @pytest.mark.parametrize(
        "members",
        [{"api_key": "x"}, {"headers": {"Authorization": "x"}}, {"a": [{"client_secret": "x"}]}, {"note": CANARY},
         {"a": ["b", CANARY]}, {"aws_secret_access_key": "x"}, {"a": {"b": "Bearer abcdefgh"}}, {"x_api_key": "y"},
         {"dsn": "postgres://u:p@h/d"}, {"token": "hvs.abcdefghijk"}, {"Password": "x"}],
    )  # fmt: skip
    def test_what_looks_like_one_is_refused_where_it_stands_and_not_repeated(self, members: dict[str, Any]) -> None:
        [place] = plain_secrets(members, "members")
        backend = BackendSettings(name="b", base_url="http://b", members=members)
        with pytest.raises(InvalidArgument) as refusal:
            check_settings((backend,))

        assert place in refusal.value.message
        assert CANARY not in refusal.value.message
        assert "abcdefgh" not in refusal.value.message

    @pytest.mark.parametrize(
        "members",
        [{}, {"options": {"num_ctx": 8192, "stop": ["</s>"]}}, {"max_tokens_per_doc": "5"}, {"tokenizer": "auto"},
         {"stop_token_ids": [1, 2]}, {"skip_special_tokens": True}, {"guided_json": {"type": "object"}}, {"secret": ""},
         {"secret": None}, {"user": "someone"}, {"cache_key": "a"}, {"prompt_cache_key": "b"},
         {"note": "task-oriented-dialog-x"}, {"password": {"type": "string"}}],
    )  # fmt: skip
    def test_what_does_not_is_let_be(self, members: dict[str, Any]) -> None:
        assert list(plain_secrets(members)) == []


def test_a_secret_in_a_set_or_an_error_is_not_told() -> None:
    secret = Secret(CANARY, version="1")

    assert CANARY not in f"{ {secret} } {ValueError(secret)!r} {[secret]}"
