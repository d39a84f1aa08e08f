"""The node's three surfaces over one PostgreSQL, in this process, with people of two tenants and two namespaces in them.

Everybody owns the same things, made in the same way, and each text of theirs says whose it is.
"""

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

import httpx
from msgspec.structs import replace

from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from adapters.token_auth.published import PublishedFile
from conformance.factories import idempotency
from conformance.people import ACME, ACME_BEN, ACME_LAB, GLOBEX, NODE, PLATFORM
from deploy.roles import ROLES, scopes_of
from deploy.roots import admin as admin_root
from deploy.roots import stack_a as stack_a_root
from deploy.roots import stack_b as stack_b_root
from deploy.roots.environment import Environment
from deploy.roots.wiring import open_ports
from observability.metrics import Metrics
from ports.adapter import Given
from ports.agent import AgentSpec
from ports.budget import Budget
from ports.context import AuthContext
from ports.http.body import Receive
from ports.http.edge import App, Scope, Send
from ports.ids import AgentId, PrincipalId, TenantId, WorkerId
from ports.messages import Fault
from ports.run_state import Change, NewEvent, NewRun, StepIntent, StepResult
from ports.tenant import Entitlements, NewKey
from stack_a.app import create_app
from stack_a.deps import API_NEEDS, ApiDeps
from tests.support.http_server import served
from tests.support.isolation.positions import MAP, REPLAYED, Json, Key, Row, filled
from tests.support.postgres import Clone, cloned
from tests.support.scripted_upstream import completion, usage

PEOPLE: Final[Mapping[str, AuthContext]] = {
    "acme": ACME,
    "globex": GLOBEX,
    # A key belongs to a principal of a tenant, in whichever namespace: hers are no stranger's.
    "lab": replace(ACME_LAB, principal=ACME_BEN.principal),
}
AUDIENCES: Final = {"a": "stack-a", "b": "stack-b", "admin": "admin"}
_KNOCK: Final = {
    "a": "/v1/agents?nothing=1",
    "b": "/v1/models?nothing=1",
    "admin": "/v1/admin/gateway/configuration?nothing=1",
}
"""Refused right behind the door."""
CORRELATION: Final = "isolation"
_ISSUER: Final = "http://node.test"
_HOUR: Final = timedelta(hours=1)
_WORKER: Final = WorkerId("wrk_isolation")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """A provider that answers with what it was asked, so that an answer says whose it is."""
    raw = b""
    while scope["type"] == "http":
        message = await receive()
        raw += message.get("body", b"")
        if not message.get("more_body"):
            break
    asked = json.loads(raw or b"{}")
    if scope["path"].endswith("/embeddings"):
        vectors = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        answer: Json = {"object": "list", "data": vectors, "model": asked["model"], "usage": usage(3, 0)}
    elif "messages" in asked:
        answer = completion(str(asked["messages"][-1]["content"]), usage=usage(10, 20)).body
    else:
        answer = {"object": "list", "data": []}
    said = json.dumps(answer).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": said})


@dataclass
class Holdings:
    """What somebody owns, by kind."""

    values: dict[str, str]
    secret: str
    """Is in every text of theirs."""
    hidden: set[str] = field(default_factory=set)
    """Ids that nobody else may ever be shown."""


@dataclass
class World:
    database: Clone
    http: dict[str, httpx.AsyncClient]
    documents: dict[str, Json]
    ports: dict[str, Any]
    mint: Any
    owned: dict[str, Holdings] = field(default_factory=dict)
    """What the cells are about. Only its owner may touch it."""
    spent: dict[str, Holdings] = field(default_factory=dict)
    """The same once more: what its owner has used up, under keys of its own."""
    spare: dict[str, Holdings] = field(default_factory=dict)
    """And again: what strangers make their valid requests with."""
    used: dict[tuple[Key, str, str], str] = field(default_factory=dict)
    """By route, place and owner: a key that was used."""
    cursors: dict[tuple[Key, str], str] = field(default_factory=dict)
    """By route and owner."""

    tokens: dict[tuple[str, ...], str] = field(default_factory=dict)

    def token(self, surface: str, who: str, role: str, *, principal: str | None = None) -> str:
        scopes, person = scopes_of(role), PEOPLE[who]
        auth = replace(person, scopes=scopes, roles=frozenset({role}), principal=principal or person.principal)
        name = (surface, who, role, auth.principal)
        if name not in self.tokens:
            self.tokens[name] = self.mint.mint(auth, audience=AUDIENCES[surface], scopes=scopes, lifetime=_HOUR)
        return self.tokens[name]

    async def known(self, surface: str, token: str) -> None:
        """Have the verifier look at a token: whether its tenant is welcome it asks the database once in a while."""
        answer = await self.http[surface].get(_KNOCK[surface], headers={"authorization": f"Bearer {token}"})
        assert answer.status_code in {400, 403}, answer.text

    async def use_key(self, key: Key, row: Row, place: str, who: str) -> str:
        """A key that somebody has just made a request under; the last one where that can be done only once."""
        fresh = f"key-{uuid.uuid4().hex}"
        answer = await self.send(
            key, row, self.token(key[0], who, "tenant_admin"), self.spent[who], given={place: fresh}
        )
        if answer.status_code < 300:
            self.used[key, place, who] = fresh
        return self.used[key, place, who]

    async def send(
        self,
        key: Key,
        row: Row,
        token: str,
        mine: Holdings,
        *,
        given: Mapping[str, str] | None = None,
        body: Json = ...,
    ) -> httpx.Response:
        """A valid request of the owner of `mine`, but with `given` at its places; `body` instead of the usual one."""
        surface, method, template = key
        given = given or {}
        headers = {"authorization": f"Bearer {token}", "x-correlation-id": CORRELATION, **row.headers}
        if "header:Idempotency-Key" in row.ids and surface != "b":
            headers["Idempotency-Key"] = uuid.uuid4().hex
        path, query = template, filled(row.query, {**mine.values, "secret": mine.secret})
        content = filled(row.body, {**mine.values, "secret": mine.secret}) if body is ... else body
        for place, kind in row.ids.items():
            where, _, name = place.partition(":")
            if where == "path":
                path = path.replace("{" + name + "}", given.get(place, mine.values[kind]))
        for place, value in given.items():
            where, _, name = place.partition(":")
            if where == "query":
                query[name] = value
            elif where == "header":
                headers[name] = value
            elif where == "body":
                content = _with(content, name.split("."), value)
        return await self.http[surface].request(method, path, params=query, headers=headers, json=content)


def _with(content: Json, names: list[str], value: str) -> Json:
    first, *others = names
    return {**content, first: _with(content.get(first, {}), others, value) if others else value}


@asynccontextmanager
async def world(home: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(cloned())
        (home / "jwks.json").write_text(json.dumps(issuer.jwks(issuer.generate_key(home / "issuer.pem"))))
        upstream = await stack.enter_async_context(served(echo))
        env = Environment(_variables(home, database.app, f"{upstream}/v1"))
        clock, metrics = SystemClock(), Metrics()
        # The administration's role in the database is one that the other services have not.
        over_all = Environment(_variables(home, database.control, f"{upstream}/v1"))
        api = await stack.enter_async_context(open_ports(stack_a_root.defaults(env), API_NEEDS, clock=clock))
        beside = dict.fromkeys(("tenant", "budget", "privacy"))
        ports = {
            **api,
            **await stack.enter_async_context(open_ports(admin_root.defaults(over_all), beside, clock=clock)),
        }
        apps = {
            "a": create_app(
                ApiDeps(
                    clock=clock,
                    metrics=metrics,
                    published=PublishedFile(home / "jwks.json", "https://node.test", clock),
                    **api,
                )
            ),
            "b": await stack.enter_async_context(stack_b_root.create(env, stack_b_root.defaults(env), clock=clock)),
            "admin": await stack.enter_async_context(
                admin_root.create(over_all, admin_root.defaults(over_all), clock=clock)
            ),
        }
        http = {surface: await stack.enter_async_context(_client(app)) for surface, app in apps.items()}
        documents = {surface: (await client.get("/openapi.json")).json() for surface, client in http.items()}
        signing = issuer.IssuerConfig(private_key_file=str(home / "issuer.pem"), issuer=_ISSUER)
        mint = await stack.enter_async_context(issuer.SPEC.open(signing, Given(clock=clock)))
        made = World(database, http, documents, ports, mint)
        await _people(made)
        yield made


def _client(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(cast("Any", app)), base_url="http://node", timeout=30)


def _variables(home: Path, dsn: str, upstream: str) -> dict[str, str]:
    file = home / f"dsn-{hashlib.sha256(dsn.encode()).hexdigest()[:8]}"
    file.write_text(dsn)
    models = [{"id": f"m-{owner}", "chat": True, "embed": True} for owner in ("acme", "globe")]
    return {
        "AGENTOS_MODE": "prod",
        "AGENTOS_DATABASE_URL_FILE": str(file),
        "AGENTOS_ISSUER": _ISSUER,
        "AGENTOS_JWKS_FILE": str(home / "jwks.json"),
        "AGENTOS_BACKENDS": json.dumps([{"name": "up", "base_url": upstream, "models": models}]),
        "AGENTOS_EXPORTS_DIR": str(home / "exports"),
        "AGENTOS_RECORD_KEYS": "env:RECORD_KEYS",
        "RECORD_KEYS": f"tests:{'0' * 64}",
    }


async def _people(made: World) -> None:
    for who, model in (("acme", "m-acme"), ("globex", "m-globe")):
        entitled = Entitlements(
            models=(model,), tokens_per_day=10**12, runs_per_minute=1_000_000, max_queued_runs=10_000_000,
            max_active_runs=1_000,
        )  # fmt: skip
        await made.ports["tenant"].create(PLATFORM, PEOPLE[who].tenant, name=f"walrus {who}", entitlements=entitled)
    await made.ports["run_state"].renew(NODE, _WORKER, _HOUR)
    for who in PEOPLE:
        for kept in (made.owned, made.spent, made.spare):
            kept[who] = await _holdings(made, who)
    for key, row in MAP.items():
        if REPLAYED & row.ids.keys() and not row.platform:
            # What can be done once has been done, so that a stranger's requests are answered alike each time.
            for who, mine in made.spare.items():
                await made.send(key, row, made.token(key[0], who, "platform_admin"), mine)
    chat: Key = ("b", "POST", "/v1/chat/completions")
    for who in PEOPLE:
        await _cursors(made, who)
        made.owned[who].values["step_key"] = await made.use_key(chat, MAP[chat], "header:X-Step-Key", who)


async def _holdings(made: World, who: str) -> Holdings:
    auth, secret = PEOPLE[who], f"walrus {who}"
    tag = uuid.uuid4().hex[:8]
    agent = AgentId(f"agt_{tag}")
    for one in (agent, AgentId(f"agt_more_{tag}")):
        await made.ports["agent"].publish(
            auth, AgentSpec(id=one, model="m", instructions=f"Tell nobody of the {secret}.")
        )
    step = StepIntent(n=1, kind="tool", name="t", effect="unsafe", input={"of": secret}, input_digest="x")
    began, failed = NewEvent(type="step.started", data={"of": secret}), NewEvent(type="run.failed", data={"of": secret})
    error = Fault(code="tool_failed", message=f"the {secret} did it")
    ended = Change(
        steps=(step, StepResult(n=1, status="failed", error=error)),
        events=(began, failed),
        status="failed",
        error=error,
    )
    parked = Change(steps=(step, StepResult(n=1, status="unknown")), events=(began,), status="needs_operator")
    runs = {
        "run": await _run(made, auth, agent, secret, ended),
        "run_parked": await _run(made, auth, agent, secret, parked),
        "run_queued": await _run(made, auth, agent, secret, None),
        "run_doomed": await _run(made, auth, agent, secret, None),
    }
    values = {
        **runs,
        "agent": agent,
        "session": f"session-{tag}",
        "tenant": auth.tenant,
        "subject": f"tnt_of-{tag}",
        "newcomer": f"tnt_new-{tag}",
        "budget": f"budget-{tag}",
        "model": f"m-{auth.tenant.removeprefix('tnt_')[:5]}",
        "step_key": f"step-{tag}",
        "event": f"{made.ports['event'].stream_epoch}.1",
        "version": "1",
        "version_tag": '"1"',
    }
    subject = TenantId(values["subject"])
    await made.ports["tenant"].create(PLATFORM, subject, name=secret, entitlements=Entitlements())
    await made.ports["budget"].set_budget(PLATFORM, subject, Budget(id=values["budget"], limit=1_000))
    hold = await made.ports["privacy"].hold(PLATFORM, subject, PrincipalId("usr_held"), reason=secret)
    values["hold"] = hold.id
    person = replace(PLATFORM, tenant=subject, scopes=frozenset({"admin:tenant"}))
    new = NewKey(
        principal=PrincipalId(f"svc_{tag}"), scopes=frozenset(), secret_sha256=hashlib.sha256(tag.encode()).digest()
    )
    values["api_key"] = (await made.ports["tenant"].issue_key(person, new)).id
    values["own_key"] = (await made.ports["tenant"].issue_key(auth, new)).id
    return Holdings(
        values,
        secret,
        {*runs.values(), agent, *(values[kind] for kind in ("session", "subject", "budget", "hold", "own_key"))},
    )


async def _run(made: World, auth: AuthContext, agent: AgentId, secret: str, change: Change | None) -> str:
    state = made.ports["run_state"]
    new = NewRun(
        agent_id=agent, agent_version=1, agent_digest="d", input={"of": secret}, idempotency=idempotency(),
        context={"of": secret},
    )  # fmt: skip
    created = (await state.create(auth, new)).run
    if change is not None:
        held = await state.claim(auth, created.id, _WORKER)
        await state.append(auth, created.id, held.epoch, change)
    return str(created.id)


async def _cursors(made: World, who: str) -> None:
    for key, row in MAP.items():
        if "query:cursor" in row.ids:
            token = made.token(key[0], who, "platform_admin")
            answer = await made.send(key, row, token, made.owned[who], given={"query:limit": "1"})
            assert answer.status_code == 200, (key, who, answer.text)
            made.cursors[key, who] = answer.json()["next_cursor"] or ""


ALL_ROLES: Final = tuple(ROLES)
