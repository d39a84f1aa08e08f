"""A run's tool calls to wherever its model says: by API, worker, `http_get` and guard, nobody on loopback is reached."""

import json
import socket
from collections.abc import Sequence
from typing import Final, cast

import anyio
import pytest
from msgspec.structs import replace

from adapters.builtin_tools.http_get import http_get
from adapters.builtin_tools.port import BuiltinTools
from adapters.egress import guard
from adapters.egress.addresses import address_is_public
from adapters.egress.names import resolve_by_system
from adapters.inproc.model import scripted
from conformance.people import ACME
from ports.egress import EgressPort
from ports.messages import Json
from ports.model import Message, ToolRequest
from tests.support.egress import guarded
from tests.support.http_origin import answer, serving
from tests.support.stack_a import AGENT, stack_a
from tests.support.unsafe_urls import UNSAFE_URLS
from tests.support.worker import model
from tests.unit.test_egress_canary import UNREACHED, Canary, FlippingResolver, resolve_to_loopback

pytestmark = pytest.mark.anyio

TOGETHER: Final = AGENT.limits.max_parallel_tools


@pytest.fixture
async def canary() -> Canary:
    return Canary()


async def called(egress: EgressPort, *urls: str) -> list[dict[str, Json]]:
    """What came of each, of runs whose model asks for them."""
    steps: list[dict[str, Json]] = []
    async with stack_a() as node:
        await node.api.agent.publish(ACME, replace(AGENT, tools=("http_get",)))
        for at in range(0, len(urls), TOGETHER):
            said: list[Message | str] = [Message(role="assistant", tool_calls=_asked(urls[at : at + TOGETHER])), "done"]
            async with node.worker(model(scripted(said)), BuiltinTools([http_get(egress)])):
                run = await node.ended(await node.created())
            assert run.status == "succeeded"
            page = (await node.get(f"/v1/runs/{run.id}/steps")).json()["items"]
            steps += [one for one in page if one["kind"] == "tool"]
    assert len(steps) == len(urls)
    return steps


def _asked(urls: Sequence[str]) -> tuple[ToolRequest, ...]:
    named = enumerate(json.dumps({"url": url}) for url in urls)
    return tuple(ToolRequest(id=f"call_{at}", name="http_get", arguments=one) for at, one in named)


async def test_no_unsafe_url_that_a_model_says_reaches_the_canary(canary: Canary) -> None:
    with anyio.fail_after(120):
        async with canary.listening():
            # What is no URL at all is refused by the tool's schema.
            forms = [form.replace("{port}", str(canary.port)) for form in UNSAFE_URLS if form]
            async with guarded(resolve_to_loopback, ports=(80, 443, canary.port)) as egress:
                steps = await called(egress, *forms)

    assert {cast("dict[str, Json]", step["error"])["code"] for step in steps} == {"egress_denied"}
    assert canary.hits == 0


async def test_a_redirect_is_told_to_the_model_and_not_followed(canary: Canary) -> None:
    with anyio.fail_after(60):
        async with canary.listening():
            moved = answer(b"", status="302 Found", location=f"http://127.0.0.1:{canary.port}/")
            async with (
                serving({"/": moved}) as origin,
                guarded(private={("shop.example", origin.port)}, ports=(80, 443, canary.port)) as egress,
            ):
                [step] = await called(egress, f"http://shop.example:{origin.port}/")

    assert canary.hits == 0
    output = cast("dict[str, Json]", step["output"])
    assert (output["status"], output["location"]) == (302, f"http://127.0.0.1:{canary.port}/")


async def test_a_name_that_turns_to_loopback_after_its_first_answer_leads_nowhere(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        guard, "address_is_public", lambda one, **more: str(one) == UNREACHED or address_is_public(one, **more)
    )
    with anyio.fail_after(60):
        async with canary.listening():
            url = f"http://rebinding.example.com:{canary.port}/"
            async with guarded(resolve_by_system, ports=(80, 443, canary.port)) as egress:
                resolver = FlippingResolver()
                with monkeypatch.context() as patch:
                    patch.setattr(socket, "getaddrinfo", resolver)
                    steps = await called(egress, url)
                    # By now it is loopback.
                    steps += await called(egress, url)

    codes = [cast("dict[str, Json]", step["error"])["code"] for step in steps]
    assert codes == ["tool_failed", "egress_denied"]
    assert resolver.asked["rebinding.example.com"] == len(codes)
    assert canary.hits == 0
