"""The first boot of a database: roles that can do no more than they must, and a database of their own.

Runs as the server's administrator, and is the only thing that ever does. Repeating it changes nothing.

* `ao_owner`  owns the tables and migrates them; forced row-level security denies it their rows.
* `ao_app`    what the services connect as: can neither bypass row-level security nor own anything.
* `ao_control` what the admin API and the operator's commands connect as: all that `ao_app` may, as bound to one tenant at a
               time, and beside it what only the platform does (tenants, budgets, the gateway's configuration, erasing).
* `ao_admin`  for people and data migrations: bypasses row-level security. No service uses it.
* `ao_def`    owns the few functions that must cross tenants; nobody can log in as it.
"""

import base64
import hashlib
import hmac
import secrets
from typing import Final

import asyncpg
from msgspec import Struct

from ports.errors import InvalidArgument

DATABASE: Final = "agentos"
SCHEMA: Final = "agentos"
OWNER: Final = "ao_owner"
APP: Final = "ao_app"
CONTROL: Final = "ao_control"
ADMIN: Final = "ao_admin"
DEFINER: Final = "ao_def"

# Every cluster has these beside ours, and lets everybody in.
_MAINTENANCE: Final = ("postgres", "template1")

# What PostgreSQL itself uses by default for new passwords.
_SCRAM_ITERATIONS: Final = 4_096

_ROLES: Final = {
    OWNER: "LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION",
    APP: "LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION",
    CONTROL: "LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION",
    ADMIN: "LOGIN NOSUPERUSER BYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION",
    DEFINER: "NOLOGIN NOSUPERUSER BYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION",
}


class RolePasswords(Struct, frozen=True, kw_only=True):
    """Secrets of the roles that can log in. Printable ASCII, so that every client prepares them alike."""

    owner: str
    app: str
    admin: str
    control: str = ""
    """Empty: nobody can log in as it."""

    def __repr__(self) -> str:
        return "RolePasswords(…)"


async def bootstrap(admin_dsn: str, passwords: RolePasswords, *, database: str = DATABASE) -> None:
    """Make the roles, their passwords and `database` as they should be."""
    server = await asyncpg.connect(admin_dsn, timeout=10, command_timeout=30)
    try:
        for role, attributes in _ROLES.items():
            await _ensure_role(server, role, attributes)
        secrets_of = {OWNER: passwords.owner, APP: passwords.app, CONTROL: passwords.control, ADMIN: passwords.admin}
        for role, password in secrets_of.items():
            if password or role != CONTROL:
                await _ensure_password(server, role, password)
        # Its row-level security, and its rights on tables that later migrations make, are those of the services.
        await server.execute(f"GRANT {APP} TO {CONTROL} WITH INHERIT TRUE, SET FALSE")
        # Migrations hand functions over to the definer role; membership by itself inherits nothing.
        await server.execute(f"GRANT {DEFINER} TO {OWNER} WITH INHERIT FALSE, SET TRUE")
        if await server.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database) is None:
            await server.execute(
                f"CREATE DATABASE {_quoted(database)} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8'"
            )
        await restrict_database(server, database)
        await _close_maintenance_databases(server)
    finally:
        await server.close()
    inside = await asyncpg.connect(admin_dsn, database=database, timeout=10, command_timeout=30)
    try:
        # With set_config, injected SQL could change the tenant in the middle of a query. SET is a statement of its own.
        await inside.execute(
            f"""
            REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC;
            GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO {ADMIN};
            REVOKE ALL ON SCHEMA public FROM PUBLIC;
            SET client_min_messages = warning;
            CREATE SCHEMA IF NOT EXISTS {SCHEMA} AUTHORIZATION {OWNER};
            GRANT USAGE ON SCHEMA {SCHEMA} TO {APP}, {ADMIN}, {DEFINER};
            """
        )
    finally:
        await inside.close()


async def restrict_database(server: asyncpg.Connection, database: str) -> None:
    """Let our own roles into `database`, and nobody else. PostgreSQL does not copy this to a clone."""
    await server.execute(f"REVOKE ALL ON DATABASE {_quoted(database)} FROM PUBLIC")
    await server.execute(f"GRANT CONNECT ON DATABASE {_quoted(database)} TO {OWNER}, {APP}, {CONTROL}, {ADMIN}")


async def _close_maintenance_databases(server: asyncpg.Connection) -> None:
    """A service that was taken over finds nowhere to create objects or look around but in its own database."""
    # On a managed server they belong to the provider, and are the provider's to close.
    ours = await server.fetch(
        "SELECT datname FROM pg_database WHERE datname = ANY($1) AND pg_has_role(datdba, 'USAGE')", _MAINTENANCE
    )
    for row in ours:
        await server.execute(f"REVOKE CONNECT, TEMPORARY ON DATABASE {_quoted(row['datname'])} FROM PUBLIC")


async def _ensure_role(server: asyncpg.Connection, role: str, attributes: str) -> None:
    exists = await server.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
    await server.execute(f"{'ALTER' if exists else 'CREATE'} ROLE {role} {attributes}")


async def _ensure_password(server: asyncpg.Connection, role: str, password: str) -> None:
    try:
        stored = await server.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1", role)
    except asyncpg.InsufficientPrivilegeError:
        # A managed server's administrator is not a superuser: set it without looking.
        stored = None
    if stored is None or not verifies(stored, password):
        # A verifier instead of the password: the statement may end up in the server's log.
        await server.execute(f"ALTER ROLE {role} PASSWORD '{verifier_of(password, salt=secrets.token_bytes(16))}'")


def verifier_of(password: str, *, salt: bytes, iterations: int = _SCRAM_ITERATIONS) -> str:
    """What PostgreSQL stores of a SCRAM-SHA-256 password."""
    if not (password.isascii() and password.isprintable() and password):
        raise InvalidArgument("a database password must be printable ASCII, and not empty")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = (salt, hashlib.sha256(client_key).digest(), server_key)
    encoded_salt, stored_key, encoded_server_key = (base64.b64encode(part).decode() for part in parts)
    return f"SCRAM-SHA-256${iterations}:{encoded_salt}${stored_key}:{encoded_server_key}"


def verifies(stored: str, password: str) -> bool:
    """Whether `stored` is a SCRAM-SHA-256 verifier of `password`."""
    match stored.split("$"):
        case ["SCRAM-SHA-256", cost, _]:
            iterations, _, salt = cost.partition(":")
            made = verifier_of(password, salt=base64.b64decode(salt), iterations=int(iterations))
            return hmac.compare_digest(stored, made)
    return False


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
