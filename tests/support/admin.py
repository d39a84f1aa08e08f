"""The admin API in this process over adapters of `adapters.inproc`."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx
from msgspec.structs import replace

from adapters.inproc import gateway_configuration, store
from adapters.inproc.store import InprocConfig
from adapters.system_clock import SystemClock
from conformance.people import ACME, ACME_LAB, GLOBEX, PLATFORM
from deploy.admin_surface import Part, create_admin_app
from observability.metrics import Metrics
from ports.adapter import Given
from ports.auth import mismatch
from ports.context import SCOPES, AuthContext, PolicyContext
from ports.errors import Unauthenticated
from ports.gateway_configuration import GatewayConfigurations
from ports.roles import ROLES
from stack_b.administration import Administration
from stack_b.diagnosis import NodeFacts
from stack_b.http import admin as gateway

CALLERS = {
    "platform": PLATFORM,
    "tenant_admin": replace(ACME, scopes=ACME.scopes | ROLES["tenant_admin"]),
    "user": ACME,
    "viewer": replace(ACME, scopes=ROLES["viewer"]),
    "narrow_admin": replace(ACME, scopes=ROLES["viewer"] - {"agents:read"} | {"admin:tenant"}),
    "everything": replace(ACME, scopes=SCOPES),
    "globex_admin": replace(GLOBEX, scopes=ROLES["tenant_admin"]),
    "lab_admin": replace(ACME_LAB, scopes=ROLES["tenant_admin"]),
    "bound_admin": replace(ACME, scopes=ROLES["tenant_admin"], policy=PolicyContext(regions=("eu",))),
    "guest": replace(GLOBEX, scopes=ROLES["tenant_admin"] | {"tenant:act_as"}).acting_for(ACME.tenant),
}


class Tokens:
    """A verifier for tests: a token is a name."""

    async def verify(self, token: str) -> AuthContext:
        if token not in CALLERS:
            raise Unauthenticated("the token is not valid")
        return CALLERS[token]

    async def act_as(self, _: str, __: str, /) -> AuthContext:
        raise mismatch()


@dataclass(kw_only=True)
class Admin:
    http: httpx.AsyncClient
    store: GatewayConfigurations

    async def send(
        self, method: str, path: str, body: Any = None, *, who: str = "platform", **headers: str
    ) -> httpx.Response:
        """`headers` with _ for -; None of them is there by itself but the token and, for a change, a key of its own."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if method != "GET":
            sent.setdefault("idempotency-key", uuid.uuid4().hex)
        if who:
            sent["authorization"] = f"Bearer {who}"
        return await self.http.request(method, path, json=body, headers=sent)

    async def put(self, document: Any, *, if_match: str = "*", comment: str = "", **headers: str) -> httpx.Response:
        body = {"document": document, "comment": comment}
        return await self.send("PUT", gateway.CURRENT, body, if_match=if_match, **headers)

    async def plan(self, document: Any) -> Any:
        answer = await self.send("PUT", gateway.CURRENT + "?dry_run=true", {"document": document})
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def admin(
    facts: NodeFacts | None = None, *, overridden_by: str | None = None, more: Sequence[Part] = ()
) -> AsyncIterator[Admin]:
    """`more` are parts beside the gateway's."""
    config = InprocConfig(name=uuid.uuid4().hex)
    async with AsyncExitStack() as stack:
        stack.callback(store.drop, config.name)
        versions = await stack.enter_async_context(gateway_configuration.SPEC.open(config, Given(clock=SystemClock())))
        part = Part(
            routes=gateway.ROUTES,
            operations=gateway.OPERATIONS,
            limits=gateway.LIMITS,
            handlers=gateway.handlers(Administration(versions, facts or NodeFacts()), overridden_by=overridden_by),
        )

        async def answers() -> None:
            await versions.current(PLATFORM)

        app = create_admin_app((part, *more), verifier=Tokens(), metrics=Metrics(), probes={"database": answers})
        transport = httpx.ASGITransport(cast("Any", app))
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://admin"))
        yield Admin(http=http, store=versions)
