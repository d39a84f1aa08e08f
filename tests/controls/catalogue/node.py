"""The node and its operator."""

from typing import Final

from tests.controls.removal import Removal

CONFIG: Final = "deploy/config.py"

REMOVALS: Final = (
    Removal(
        "S10",
        "deploy/node.py",
        "    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)\n",
        "    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)\n",
        ("test_secrets_are_readable_by_their_owner_only_and_in_no_report",),
    ),
    Removal(
        "S10",
        "adapters/token_auth/issuer.py",
        "        if exposed:\n",
        "        if exposed < 0:\n",
        ("test_a_key_file_open_to_others_missing_or_of_another_kind_is_refused",),
    ),
    Removal(
        "T18",
        "adapters/postgres/migrate.py",
        "        if applied.get(migration.name, migration.sha256) != migration.sha256:\n",
        "        if not migration.sha256:\n",
        ("test_an_edited_migration_is_refused",),
    ),
    Removal(
        "I18",
        CONFIG,
        "    if config.openai_api_key and not _REFERENCE.fullmatch(config.openai_api_key):\n",
        '    if config.openai_api_key == "in clear":\n',
        ("test_prod_takes_secrets_by_reference_only",),
    ),
    Removal(
        "I18",
        CONFIG,
        "        return MASK\n",
        "        return text\n",
        ("test_secrets_are_masked_and_references_are_not",),
    ),
    Removal(
        "I18",
        "ports/secrets.py",
        'f"the secret {name!r} has control characters; it must be text"',
        'f"the secret {name!r} has control characters: {stripped!r}"',
        ("test_no_error_tells_a_value",),
    ),
    Removal(
        "I19",
        CONFIG,
        "    exposed = sorted({config.stack_a_host, config.stack_b_host, config.admin_host} - _LOOPBACK)\n",
        "    exposed: list[str] = []\n",
        ("test_prod_does_not_serve_plain_http_to_a_network",),
    ),
    Removal(
        "D19",
        "deploy/cli/nuke_command.py",
        "    if not options.yes_really:\n",
        "    if not options.yes_really and not options.hard:\n",
        ("test_without_consent_nothing_is_removed",),
    ),
)
