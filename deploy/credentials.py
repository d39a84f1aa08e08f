"""The secrets this node generates for itself: made once, kept in `.agentos/secrets` (0600), never printed.

Services get the paths of the files they need, not the values.
"""

import secrets
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from adapters.postgres.bootstrap import APP, CONTROL, DATABASE, OWNER, RolePasswords
from adapters.token_auth.issuer import generate_key
from deploy.node import Node, write_private
from stack_b.vault import new_line

# 256 bits, and safe inside a URL.
_SECRET_BYTES: Final = 32

DATABASE_PASSWORDS: Final = "postgres.json"
APP_URL: Final = "database_url"
OWNER_URL: Final = "database_owner_url"
CONTROL_URL: Final = "database_control_url"
ISSUER_KEY: Final = "issuer_key.pem"
JWKS: Final = "jwks.json"
PLACEHOLDER_KEY: Final = "placeholder_key"
RECORD_KEYS: Final = "record_keys"
AUDIT_KEY: Final = "audit_key.pem"
TOKENS: Final = "tokens.json"


class DatabasePasswords(Struct, frozen=True, kw_only=True):
    superuser: str
    owner: str
    app: str
    admin: str
    control: str = ""
    """Empty in a file of an older version; made at the next start."""

    def roles(self) -> RolePasswords:
        return RolePasswords(owner=self.owner, app=self.app, admin=self.admin, control=self.control)

    def __repr__(self) -> str:
        return "DatabasePasswords(…)"


class SeededKey(Struct, frozen=True, kw_only=True):
    """An API key as handed out once: the only place where its secret is kept in clear."""

    principal: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    key_id: str
    api_key: str


class Tokens(Struct, frozen=True, kw_only=True):
    """`tokens.json`: how people reach the seeded tenant."""

    tenant_id: str
    agent_id: str
    keys: dict[str, SeededKey]


def database_passwords(node: Node) -> DatabasePasswords:
    """The embedded database's passwords; made on the first call."""
    path = node.secret(DATABASE_PASSWORDS)
    if path.exists():
        known = msgspec.json.decode(path.read_bytes(), type=DatabasePasswords)
        if known.control:
            return known
        known = msgspec.structs.replace(known, control=secrets.token_urlsafe(_SECRET_BYTES))
        write_private(path, msgspec.json.encode(known).decode())
        return known
    made = DatabasePasswords(
        **{name: secrets.token_urlsafe(_SECRET_BYTES) for name in DatabasePasswords.__struct_fields__}
    )
    write_private(path, msgspec.json.encode(made).decode())
    return made


def ensure_placeholder_key(node: Node) -> None:
    """What the gateway makes its placeholders for personal data with: the same ones after a restart."""
    path = node.secret(PLACEHOLDER_KEY)
    if not path.exists():
        write_private(path, secrets.token_hex(_SECRET_BYTES))


def ensure_record_keys(node: Node) -> None:
    """What the gateway seals replies and prompts with. A new line in front is the key from then on; old ones still open."""
    path = node.secret(RECORD_KEYS)
    if not path.exists():
        write_private(path, new_line())


def ensure_audit_key(node: Node) -> None:
    """What the heads of the audit are signed with."""
    path = node.secret(AUDIT_KEY)
    if not path.exists():
        generate_key(path)


def embedded_url(role: str, password: str, port: int, database: str = DATABASE) -> str:
    return f"postgresql://{role}:{password}@127.0.0.1:{port}/{database}"


def write_embedded_urls(node: Node, passwords: DatabasePasswords, port: int) -> None:
    """The files the services and the migrations connect by."""
    write_if_changed(node.secret(APP_URL), embedded_url(APP, passwords.app, port))
    write_if_changed(node.secret(CONTROL_URL), embedded_url(CONTROL, passwords.control, port))
    write_if_changed(node.secret(OWNER_URL), embedded_url(OWNER, passwords.owner, port))


def write_if_changed(path: Path, text: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_private(path, text)
    return True


def load_tokens(node: Node) -> Tokens | None:
    path = node.secret(TOKENS)
    if not path.exists():
        return None
    return msgspec.json.decode(path.read_bytes(), type=Tokens)


def save_tokens(node: Node, tokens: Tokens) -> None:
    write_private(node.secret(TOKENS), msgspec.json.format(msgspec.json.encode(tokens), indent=2).decode() + "\n")
