"""The composition root of the admin API, over adapters of this process and without a network."""

import dataclasses
import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from msgspec.structs import replace

from adapters.inproc.store import store
from adapters.inproc.tenant import InprocTenants
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key, jwks
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.roots.admin import STORED, create, defaults, facts
from deploy.roots.environment import Environment
from deploy.roots.wiring import Choice, open_ports
from ports.tenant import Entitlements
from stack_b.diagnosis import diagnosed
from stack_b.http.admin import CURRENT

pytestmark = [pytest.mark.anyio]


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "dsn").write_text("postgresql://ao_app@127.0.0.1:1/agentos")
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(generate_key(tmp_path / "key.pem"))))
    return {
        "AGENTOS_MODE": "prod",
        "AGENTOS_DATABASE_URL_FILE": str(tmp_path / "dsn"),
        "AGENTOS_ISSUER": "http://node",
        "AGENTOS_JWKS_FILE": str(tmp_path / "jwks.json"),
        "AGENTOS_GATEWAY_FILE": "/etc/agentos/gateway.json",
    }


async def test_it_takes_tokens_of_its_own_audience_and_knows_the_rest_of_the_node(
    variables: dict[str, str], tmp_path: Path
) -> None:
    env, name, clock = Environment(variables), uuid.uuid4().hex, SystemClock()
    choices = defaults(env) | {port: Choice(adapter="inproc", config={"name": name}) for port in STORED}
    issuer = Choice(
        adapter="tokens", config={"private_key_file": str(tmp_path / "key.pem"), "issuer": variables["AGENTOS_ISSUER"]}
    )
    await InprocTenants(store(name), clock).create(PLATFORM, ACME.tenant, name="acme", entitlements=Entitlements())
    person = replace(ACME, scopes=frozenset({"admin:platform"}))

    async with (
        open_ports({"issuer": issuer}, {"issuer": None}, clock=clock) as ports,
        create(env, choices, clock=clock) as app,
    ):
        tokens = {
            audience: ports["issuer"].mint(
                person, audience=audience, scopes=person.scopes, lifetime=timedelta(minutes=5)
            )
            for audience in ("admin", "stack-a", "stack-b")
        }
        http = httpx.AsyncClient(transport=httpx.ASGITransport(cast("Any", app)), base_url="http://admin")
        async with http:
            answers = {
                audience: await http.get(CURRENT, headers={"authorization": f"Bearer {token}"})
                for audience, token in tokens.items()
            }
            ready = (await http.get("/readyz")).json()
            headers = {"authorization": f"Bearer {tokens['admin']}", "idempotency-key": "k"}
            document = {"backends": [{"name": "demo", "kind": "demo"}]}
            plan = await http.put(CURRENT + "?dry_run=true", json={"document": document}, headers=headers)

    assert {audience: answer.status_code for audience, answer in answers.items()} == {
        "admin": 200, "stack-a": 401, "stack-b": 401,
    }  # fmt: skip
    assert "/etc/agentos/gateway.json" in answers["admin"].json()["overridden_by"]
    assert ready["dependencies"] == {"database": "ok"}
    assert [one["code"] for one in plan.json()["diagnostics"]] == ["demo_in_prod"]


async def test_who_acts_for_a_tenant_is_in_its_audit_before_it_has_looked_into_it(
    variables: dict[str, str], tmp_path: Path
) -> None:
    env, name, clock = Environment(variables), uuid.uuid4().hex, SystemClock()
    choices = defaults(env) | {port: Choice(adapter="inproc", config={"name": name}) for port in STORED}
    issuer = Choice(
        adapter="tokens", config={"private_key_file": str(tmp_path / "key.pem"), "issuer": variables["AGENTOS_ISSUER"]}
    )
    service = replace(ACME, scopes=frozenset({"tenant:act_as", "audit:read"}))
    tenants = InprocTenants(store(name), clock)
    for one in (ACME, GLOBEX):
        await tenants.create(PLATFORM, one.tenant, name="", entitlements=Entitlements())
    await tenants.let_act(PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=service.principal)

    async with (
        open_ports({"issuer": issuer}, {"issuer": None}, clock=clock) as ports,
        create(env, choices, clock=clock) as app,
    ):
        token = ports["issuer"].mint(service, audience="admin", scopes=service.scopes, lifetime=timedelta(minutes=5))
        headers = {"authorization": f"Bearer {token}", "x-tenant-id": GLOBEX.tenant}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(cast("Any", app)), base_url="http://admin") as http:
            answers = [(await http.get("/v1/admin/audit", headers=headers)).json() for _ in range(2)]

    told = [[one["entry"]["action"] for one in answer["items"]] for answer in answers]
    assert told == [["acting.use"], ["audit.read", "acting.use"]]


def test_a_dry_run_says_of_a_provided_kind_what_the_gateway_would_refuse(variables: dict[str, str]) -> None:
    """What a provider must be told to be called is its adapter's to say."""
    bedrock = {"name": "aws", "kind": "bedrock", "api_key": "env:BEDROCK_KEY", "models": [{"id": "haiku"}]}
    without_secrets = dataclasses.replace(facts(Environment(variables)), check_secret=lambda _: None)

    found = diagnosed({"backends": [bedrock]}, without_secrets)

    assert [(one.code, one.severity, one.path) for one in found.diagnostics] == [("backend", "error", "$.backends[0]")]
    assert "bedrock" in found.diagnostics[0].message
