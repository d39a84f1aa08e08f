"""The composition root of Stack B, over adapters of this process and without a network."""

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key, jwks
from deploy.roots.environment import Environment
from deploy.roots.stack_b import STORED, backends, create, defaults, prices
from deploy.roots.wiring import Choice
from ports.errors import InvalidArgument
from stack_b.configuration import Configuration, parse_configuration
from stack_b.limits import parse_limits

pytestmark = [pytest.mark.anyio]


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "dsn").write_text("postgresql://ao_app@127.0.0.1:1/agentos")
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(generate_key(tmp_path / "key.pem"))))
    return {
        "AGENTOS_MODE": "demo",
        "AGENTOS_DATABASE_URL_FILE": str(tmp_path / "dsn"),
        "AGENTOS_ISSUER": "http://node",
        "AGENTOS_JWKS_FILE": str(tmp_path / "jwks.json"),
        "AGENTOS_GATEWAY_LIMITS": '{"messages": 7}',
    }


async def test_it_opens_over_chosen_adapters_and_refuses_strangers(variables: dict[str, str]) -> None:
    env = Environment(variables)
    storage = {"name": uuid.uuid4().hex}
    choices = defaults(env) | {port: Choice(adapter="inproc", config=storage) for port in STORED}

    async with create(env, choices, clock=SystemClock()) as app:
        transport = httpx.ASGITransport(cast("Any", app))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            ready = await client.get("/readyz")
            document = (await client.get("/openapi.json")).json()
            refused = await client.get("/v1/models", headers={"authorization": "Bearer nobody"})

    assert ready.json()["dependencies"] == {"budget": "ok"}
    assert document["info"]["x-agentos-limits"]["max_messages"] == 7
    assert ready.json()["configuration"]["source"] == "store"
    assert refused.status_code == 401


async def test_the_demo_backend_is_there_outside_of_production_only(variables: dict[str, str]) -> None:
    demo = backends(Environment(variables), Configuration())
    prod = backends(Environment({**variables, "AGENTOS_MODE": "prod"}), Configuration())

    assert [backend.name for backend in demo] == ["ollama", "demo"]
    assert [backend.name for backend in prod] == ["ollama"]


async def test_prices_of_the_configuration_go_before_those_of_the_file_by_model(tmp_path: Path) -> None:
    def row(model: str, day: int, prompt: str) -> dict[str, str]:
        return {"model": model, "valid_from": f"2026-01-0{day}T00:00:00Z", "prompt": prompt}

    file = tmp_path / "prices.json"
    file.write_text(json.dumps([row("m-1", 2, "9"), row("m-2", 1, "3")]))
    configuration = parse_configuration(json.dumps({"prices": [row("m-1", 1, "1")]}))

    found = prices(Environment({"AGENTOS_PRICES_FILE": str(file)}), configuration)

    now = datetime(2026, 2, 1, tzinfo=UTC)
    assert [price and price.prompt for price in (found.of("m-1", now), found.of("m-2", now))] == [10**9, 3 * 10**9]


@pytest.mark.parametrize("text", ['{"messages": 0}', '{"mesages": 5}', '{"messages": "5"}', "[]", "x"])
async def test_caps_that_can_not_be_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="AGENTOS_GATEWAY_LIMITS"):
        parse_limits(text)
