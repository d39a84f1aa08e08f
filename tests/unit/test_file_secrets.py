"""A directory of secrets: what in it is read, and what is not."""

import os
from pathlib import Path

import pytest

from adapters.file_secrets import FileSecrets, FileSecretsConfig
from conformance.people import ACME
from conformance.secrets import CANARY, texts_of
from ports.errors import AgentOSError, InvalidArgument, NotFound

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "secrets"
    made.mkdir(mode=0o700)
    put(made / "key")
    put(tmp_path / "outside")
    return made


def put(place: Path, mode: int = 0o600) -> Path:
    place.write_text(CANARY)
    place.chmod(mode)
    return place


async def refusal_of(directory: Path, name: str, **more: bool) -> AgentOSError:
    with pytest.raises(AgentOSError) as refusal:
        await FileSecrets(FileSecretsConfig(directory=str(directory), **more)).read(ACME, name)
    assert CANARY not in texts_of(refusal.value)
    return refusal.value


async def test_a_link_within_the_directory_is_followed_as_orchestrators_make_them(directory: Path) -> None:
    (directory / "..data").mkdir()
    put(directory / "..data" / "mounted")
    (directory / "mounted").symlink_to("..data/mounted")

    found = await FileSecrets(FileSecretsConfig(directory=str(directory))).read(ACME, "mounted")

    assert found.reveal() == CANARY


async def test_a_link_that_leads_out_is_not(directory: Path) -> None:
    (directory / "link").symlink_to(directory.parent / "outside")
    (directory / "all").symlink_to(directory.parent)

    for name in ("link", "all/outside"):
        assert isinstance(await refusal_of(directory, name), NotFound)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o666, 0o620])
async def test_a_file_that_others_may_read_or_write_is_refused(directory: Path, mode: int) -> None:
    put(directory / "key", mode)

    refusal = await refusal_of(directory, "key")

    assert isinstance(refusal, InvalidArgument)
    assert "chmod 600" in refusal.message


async def test_a_group_may_read_where_the_operator_says_so_and_nobody_else(directory: Path) -> None:
    secrets = FileSecrets(FileSecretsConfig(directory=str(directory), group_may_read=True))
    put(directory / "key", 0o440)
    assert (await secrets.read(ACME, "key")).reveal() == CANARY

    for mode in (0o444, 0o460, 0o404):
        put(directory / "key", 0o600).chmod(mode)
        assert isinstance(await refusal_of(directory, "key", group_may_read=True), InvalidArgument)


async def test_what_is_no_file_is_not_waited_for(directory: Path) -> None:
    os.mkfifo(directory / "pipe", 0o600)
    (directory / "folder").mkdir()

    for name in ("pipe", "folder"):
        assert isinstance(await refusal_of(directory, name), NotFound)


async def test_bytes_that_are_no_text_are_refused(directory: Path) -> None:
    (directory / "key").write_bytes(b"\xff\xfe" + CANARY.encode())

    assert isinstance(await refusal_of(directory, "key"), InvalidArgument)


async def test_a_version_says_nothing_about_the_value(directory: Path) -> None:
    secrets = FileSecrets(FileSecretsConfig(directory=str(directory)))
    put(directory / "other")

    assert (await secrets.read(ACME, "key")).version != (await secrets.read(ACME, "other")).version
