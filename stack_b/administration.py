"""What an operator does to the gateway's configuration: look, try, change, go back."""

from typing import Final

import msgspec
from msgspec import Struct

from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.gateway_configuration import Draft, GatewayConfigurations, Summary, Version
from ports.messages import Json, Page
from stack_b.diagnosis import Change, Diagnostic, NodeFacts, changes, diagnosed

NOTHING: Final[Json] = {}
"""The document that is in force while there is no version."""


class Plan(Struct, frozen=True, kw_only=True):
    """What a document would do."""

    usable: bool
    digest: str
    """Empty for one that can't be used."""
    current: int
    """The version that it was compared with; 0 when there is none."""
    diagnostics: tuple[Diagnostic, ...]
    changes: tuple[Change, ...]


class Administration:
    def __init__(self, store: GatewayConfigurations, facts: NodeFacts) -> None:
        self._store = store
        self._facts = facts

    async def current(self, auth: AuthContext) -> Version | None:
        return await self._store.current(auth)

    async def get(self, auth: AuthContext, version: int) -> Version:
        return await self._store.get(auth, version)

    async def history(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Summary]:
        return await self._store.list_versions(auth, limit=limit, cursor=cursor)

    async def plan(self, auth: AuthContext, document: Json) -> Plan:
        """Changes nothing."""
        current = await self._store.current(auth)
        diagnosis = diagnosed(document, self._facts)
        return Plan(
            usable=diagnosis.configuration is not None,
            digest="" if diagnosis.configuration is None else diagnosis.configuration.version,
            current=0 if current is None else current.version,
            diagnostics=diagnosis.diagnostics,
            changes=changes(NOTHING if current is None else current.document, document),
        )

    async def put(self, auth: AuthContext, document: Json, *, comment: str, if_match: int | None, key: str) -> Version:
        """A new version, in force from now on.

        Raises:
            InvalidArgument: `validation_failed`, with all `diagnostics` in its details.
            Conflict: another version than `if_match` is in force.
        """
        digest = self._usable(document)
        draft = Draft(document=document, digest=digest, comment=comment)
        return await self._store.put(auth, draft, if_match=if_match, key=key)

    async def restore(
        self, auth: AuthContext, version: int, *, comment: str, if_match: int | None, key: str
    ) -> Version:
        """What `version` says, in force again. Raises like `put`: what could be used then may not be usable now."""
        self._usable((await self._store.get(auth, version)).document)
        return await self._store.restore(auth, version, comment=comment, if_match=if_match, key=key)

    def _usable(self, document: Json) -> str:
        diagnosis = diagnosed(document, self._facts)
        if diagnosis.configuration is None:
            errors = [one for one in diagnosis.diagnostics if one.severity == "error"]
            raise InvalidArgument(
                f"the configuration can't be used: {errors[0].path}: {errors[0].message}"
                + (f", and {len(errors) - 1} more; see details.diagnostics" if len(errors) > 1 else ""),
                code="validation_failed",
                details={"path": errors[0].path, "diagnostics": msgspec.to_builtins(diagnosis.diagnostics)},
            )
        return diagnosis.configuration.version
