"""Kept prompts and answers, opened with the node's keys: for whoever is handed what is kept of them."""

import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from adapters.postgres.tenant_export import Open
from deploy import credentials
from deploy.cli.io import Io
from ports.errors import Unavailable
from ports.ids import TenantId, minted
from stack_b.records.recorder import CONTENT
from stack_b.vault import Vault, parse_keys

_TABLE: Final = "request_contents"


def opened_by(io: Io, tenant: TenantId) -> Open:
    """Puts texts in place of what was sealed. What does not open stays as it is, and says why."""
    path = io.node.secret(credentials.RECORD_KEYS)
    vault = parse_keys(path.read_text(encoding="utf-8")) if path.exists() else None

    def opened(table: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
        return None if table != _TABLE or vault is None else texts_of(vault, tenant, row)

    return opened


def texts_of(vault: Vault, tenant: TenantId, row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` as an export has it, with its texts."""
    # As PostgreSQL writes bytes into JSON.
    sealed = bytes.fromhex(str(row["sealed"]).removeprefix("\\x"))
    try:
        plain = vault.open(tenant, CONTENT, minted("req", uuid.UUID(row["id"])), sealed)
    except Unavailable as error:
        return {**row, "sealed_because": str(error)}
    return {**{name: value for name, value in row.items() if name != "sealed"}, "texts": msgspec.json.decode(plain)}
