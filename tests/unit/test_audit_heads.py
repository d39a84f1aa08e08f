"""Signed heads: what is signed, what is refused, and what the file tells of itself."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.inproc import audit
from adapters.inproc.audit import Chains
from adapters.inproc.store import InprocConfig, drop, store
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key, load_key
from conformance.people import ACME, GLOBEX
from deploy.audit_heads import FILE, PUBLIC_KEY, HeadsFile, Signed, public_key, read_heads
from deploy.audit_signer import Signer
from ports.adapter import Given
from ports.audit import AuditLog, Note
from ports.errors import Unavailable

pytestmark = [pytest.mark.anyio]

STORE = "audit-heads"
NOTE = Note(action="thing.do", subject="x")


@pytest.fixture
async def log() -> AsyncIterator[AuditLog]:
    async with audit.SPEC.open(InprocConfig(name=STORE), Given(clock=SystemClock())) as log:
        yield log
    drop(STORE)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    generate_key(tmp_path / "key.pem")
    return tmp_path / "audit"


def heads_in(directory: Path, *, copy: Path | None = None) -> HeadsFile:
    return HeadsFile(directory, load_key(directory.parent / "key.pem"), copy=copy)


def read(directory: Path) -> Signed:
    return read_heads((directory / FILE).read_bytes(), [public_key(directory.parent / "key.pem")])


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_only_heads_that_moved_are_signed(log: AuditLog, directory: Path) -> None:
    signer = Signer(log, heads_in(directory), SystemClock())
    await log.note(ACME, NOTE)
    await signer.sign()
    await log.note(GLOBEX, NOTE)

    moved = await signer.sign()
    nothing = await signer.sign()

    assert moved is not None
    assert [one.tenant for one in moved.sign] == [GLOBEX.tenant]
    assert nothing is not None
    assert nothing.sign == ()
    found = read(directory)
    assert (found.lines, found.bad) == (2, "")
    assert {tenant: list(known) for tenant, known in found.heads.items()} == {ACME.tenant: [1], GLOBEX.tenant: [1]}


async def test_another_process_goes_on_where_the_first_stopped(log: AuditLog, directory: Path) -> None:
    first, second = (Signer(log, heads_in(directory), SystemClock()) for _ in range(2))
    for signer in (first, second, first):
        await log.note(ACME, NOTE)
        await signer.sign()

    assert (read(directory).lines, read(directory).bad) == (3, "")


async def test_while_one_signs_another_does_not(log: AuditLog, directory: Path) -> None:
    await log.note(ACME, NOTE)

    with heads_in(directory).held() as ours:
        decided = await Signer(log, heads_in(directory), SystemClock()).sign()

    assert (ours, decided) == (True, None)
    assert not (directory / FILE).exists()


async def test_a_head_that_went_back_or_aside_or_is_gone_is_never_signed(log: AuditLog, directory: Path) -> None:
    signer = Signer(log, heads_in(directory), SystemClock())
    for auth in (ACME, ACME, GLOBEX):
        await log.note(auth, NOTE)
    await signer.sign()
    links = store(STORE).table(Chains).links
    whole = list(links[ACME.tenant])

    refused = []
    for state in (whole[:1], [whole[0], replace(whole[1], hash="00" * 32)], []):
        links[ACME.tenant] = state
        decided = await signer.sign()
        assert decided is not None
        refused.append((decided.sign, decided.refused))

    assert refused == [((), (ACME.tenant,))] * 3


async def test_the_file_tells_what_was_changed_in_it(log: AuditLog, directory: Path) -> None:
    signer = Signer(log, heads_in(directory), SystemClock())
    for _ in range(4):
        await log.note(ACME, NOTE)
        await signer.sign()
    raw = (directory / FILE).read_bytes()
    lines = raw.splitlines(keepends=True)
    other = directory.parent / "other.pem"
    generate_key(other)

    def bad(changed: bytes) -> str:
        return read_heads(changed, [public_key(directory.parent / "key.pem")]).bad

    assert bad(raw) == ""
    assert "line 2 " in bad(b"".join([lines[0], *lines[2:]]))
    assert "line 2 " in bad(b"".join([lines[0], lines[2], lines[1], lines[3]]))
    assert "signature" in bad(raw.replace(b'"tnt_acme",3', b'"tnt_acme",9'))
    assert "can't be read" in bad(lines[0] + b"{}\n")
    assert "key" in read_heads(raw, [public_key(other)]).bad
    # What was cut off is not told by the file itself: that is what the copy is for.
    assert bad(b"".join(lines[:-1])) == ""


async def test_nothing_is_added_to_a_file_that_was_changed_or_became_shorter(log: AuditLog, directory: Path) -> None:
    signer = Signer(log, heads_in(directory), SystemClock())
    for _ in range(2):
        await log.note(ACME, NOTE)
        await signer.sign()
    raw = (directory / FILE).read_bytes()
    (directory / FILE).write_bytes(raw.splitlines(keepends=True)[0])
    await log.note(ACME, NOTE)

    assert await signer.sign() is None
    (directory / FILE).write_bytes(raw.replace(b"tnt_acme", b"tnt_ache"))
    assert await Signer(log, heads_in(directory), SystemClock()).sign() is None


async def test_a_line_that_was_not_written_to_its_end_is_none(log: AuditLog, directory: Path) -> None:
    signer = Signer(log, heads_in(directory), SystemClock())
    await log.note(ACME, NOTE)
    await signer.sign()
    with (directory / FILE).open("ab") as file:
        file.write(b'{"statement":{"at"')
    await log.note(ACME, NOTE)

    await Signer(log, heads_in(directory), SystemClock()).sign()
    await log.note(ACME, NOTE)
    await signer.sign()

    found = read(directory)
    assert (found.bad, sorted(found.heads[ACME.tenant])) == ("", [1, 2, 3])


async def test_the_copy_catches_up_and_loses_nothing(log: AuditLog, directory: Path, tmp_path: Path) -> None:
    await log.note(ACME, NOTE)
    await Signer(log, heads_in(directory), SystemClock()).sign()
    copy = tmp_path / "elsewhere"
    signer = Signer(log, heads_in(directory, copy=copy), SystemClock())
    await log.note(ACME, NOTE)

    await signer.sign()
    assert (copy / FILE).read_bytes() == (directory / FILE).read_bytes()

    # Whoever begins the file anew does not reach what was copied.
    kept = (copy / FILE).read_bytes()
    (directory / FILE).unlink()
    with pytest.raises(Unavailable, match="longer"):
        heads_in(directory, copy=copy).copy()
    assert (copy / FILE).read_bytes() == kept


async def test_files_are_the_owners_and_the_public_key_lies_beside(log: AuditLog, directory: Path) -> None:
    await log.note(ACME, NOTE)
    await Signer(log, heads_in(directory), SystemClock()).sign()

    assert [mode_of(directory), mode_of(directory / FILE)] == [0o700, 0o600]
    known = read_heads((directory / FILE).read_bytes(), [public_key(directory / PUBLIC_KEY)])
    assert known.bad == ""
