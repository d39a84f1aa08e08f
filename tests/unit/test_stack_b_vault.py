"""What is sealed opens with its key, for its tenant, purpose and subject, and for nobody else."""

import pytest

from ports.errors import InvalidArgument, Unavailable
from ports.ids import TenantId
from stack_b.vault import Vault, new_line, new_vault, parse_keys

ACME, GLOBEX = TenantId("tnt_acme"), TenantId("tnt_globex")
TEXT = b"the canary sings " * 40


def test_what_was_sealed_opens_and_says_nothing_meanwhile() -> None:
    vault = new_vault()

    sealed = [vault.seal(ACME, "reply", "run_1:1", TEXT) for _ in range(2)]

    assert [vault.open(ACME, "reply", "run_1:1", one) for one in sealed] == [TEXT, TEXT]
    assert sealed[0] != sealed[1]
    assert all(b"canary" not in one for one in sealed)


@pytest.mark.parametrize(
    ("tenant", "purpose", "about"),
    [(GLOBEX, "reply", "run_1:1"), (ACME, "content", "run_1:1"), (ACME, "reply", "run_1:2")],
    ids=["another tenant", "another purpose", "another subject"],
)
def test_it_opens_nowhere_else(tenant: TenantId, purpose: str, about: str) -> None:
    vault = new_vault()
    sealed = vault.seal(ACME, "reply", "run_1:1", TEXT)

    with pytest.raises(Unavailable, match="another one") as caught:
        vault.open(tenant, purpose, about, sealed)

    assert not caught.value.retryable


@pytest.mark.parametrize("at", [0, 1, 5, 20, 40, -1])
def test_what_was_changed_does_not_open(at: int) -> None:
    vault = new_vault()
    changed = bytearray(vault.seal(ACME, "reply", "run_1:1", TEXT))
    changed[at] ^= 1

    with pytest.raises(Unavailable, match="can't be opened"):
        vault.open(ACME, "reply", "run_1:1", bytes(changed))


@pytest.mark.parametrize("cut", [b"", b"\1", b"\1\7proc", b"\2\7process" + bytes(40)])
def test_what_is_no_seal_does_not_open(cut: bytes) -> None:
    with pytest.raises(Unavailable, match="can't be opened"):
        new_vault().open(ACME, "reply", "run_1:1", cut)


def test_a_new_key_seals_and_the_old_one_still_opens() -> None:
    old, new = new_line(), new_line()
    sealed = parse_keys(old).seal(ACME, "reply", "run_1:1", TEXT)

    rotated = parse_keys(new + "\n" + old)
    again = rotated.seal(ACME, "reply", "run_1:1", TEXT)

    assert rotated.open(ACME, "reply", "run_1:1", sealed) == TEXT
    assert parse_keys(new).open(ACME, "reply", "run_1:1", again) == TEXT


def test_without_its_key_it_says_which_one_is_missing() -> None:
    sealed = Vault({"march": bytes(32)}).seal(ACME, "reply", "run_1:1", TEXT)

    with pytest.raises(Unavailable, match="'march' is not among those of this node"):
        new_vault().open(ACME, "reply", "run_1:1", sealed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key"),
        ("\n\n", "no key"),
        ("secret-canary", "line 1 is no key"),
        (f"a:{'0' * 64}\nb:{'0' * 63}", "line 2 is no key"),
        (f"a:{'0' * 64}\na:{'1' * 64}", "line 2 names the key 'a' again"),
    ],
)
def test_a_file_that_is_none_is_refused_without_being_quoted(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        parse_keys(text)

    assert "canary" not in caught.value.message
    assert "0" * 8 not in caught.value.message


def test_keys_are_not_shown() -> None:
    assert repr(Vault({"march": bytes(32)})) == "Vault(march)"
