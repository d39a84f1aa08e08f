"""The gateway as its clients see it, in process: the order of the stages, the receipt, the refusals."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from ports.budget import Balance, Budget
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.http.limits import COMMON
from ports.pii import PiiCapabilities, Span
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard, Price
from stack_b.limits import Limits
from tests.support.in_process import in_process
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_b import CALLERS, PLATFORM, stack_b

pytestmark = [pytest.mark.anyio]


def backend(upstream: Any, name: str = "up", **settings: Any) -> OpenAiCompatible:
    """In process; the connection ends with the upstream's loop."""
    return OpenAiCompatible(name=name, base_url=f"http://{name}/v1", dial_by=in_process(upstream), **settings)


class Away:
    """Any port, out of reach."""

    capabilities = PiiCapabilities()

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        raise Unavailable(f"no ledger for {auth.tenant} with {limit}")

    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        raise Unavailable(f"no budgets for {auth.tenant}")

    def elsewhere(self) -> None:
        return None

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        raise Unavailable(f"no detector for {auth.tenant} and {len(text)}")


async def test_a_reply_has_a_receipt_and_keeps_what_the_backend_said() -> None:
    card = ModelCard(id="public", upstream="m-1", price=Price(prompt=1_000_000, completion=2_000_000))
    upstream = ScriptedUpstream([completion(usage={**usage(10, 20), "prompt_tokens_details": {"cached_tokens": 4}})])
    async with stack_b(backend(upstream, models=(card,))) as node:
        answer = await node.chat(model="public")
        balance = await node.balance()

    reply = answer.json()
    assert reply["model"] == "public"
    assert reply["system_fingerprint"] == "fp_kept"
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert reply["usage"]["total_tokens"] == 30
    assert reply["usage"]["cost_nanousd"] == 50
    assert reply["usage"]["estimated"] is False
    assert {"latency_ms", "gateway_ms"} <= reply["usage"].keys()
    [attempt] = reply["route"]["attempts"]
    assert (reply["route"]["backend"], reply["route"]["model"]) == ("up", "m-1")
    assert (attempt["status"], attempt["tokens"], attempt["cost_nanousd"]) == (200, 30, 50)
    assert reply["tenant_id"] == "tnt_acme"
    assert reply["correlation_id"] == answer.headers["x-correlation-id"] == answer.headers["x-request-id"]
    assert upstream.requests[0].body["model"] == "m-1"
    assert (balance.settled, balance.held) == (30, 0)


async def test_a_backend_without_usage_is_metered_by_estimate() -> None:
    async with stack_b(backend(ScriptedUpstream([completion("x" * 400)]))) as node:
        reply = (await node.chat(model="m-1")).json()
        balance = await node.balance()

    assert reply["usage"]["estimated"] is True
    assert reply["usage"]["completion_tokens"] == 100
    assert balance.settled == reply["usage"]["total_tokens"] > 100


async def test_personal_data_and_secrets_reach_no_backend() -> None:
    upstream = ScriptedUpstream([completion()])
    secret = "sk-proj-" + "a1B2" * 10
    messages = [
        {"role": "system", "content": "the boss is ann@example.com"},
        {"role": "user", "content": [{"type": "text", "text": f"use {secret}"}], "name": "ann@example.com"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "mail", "arguments": '{"to":"ben@example.com"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "sent to ben@example.com"},
    ]  # fmt: skip
    async with stack_b(backend(upstream)) as node:
        body = {"model": "m-1", "messages": messages, "metadata": {"who": "eve@example.com"}, "user": "eve@example.com"}
        reply = (await node.post("/v1/chat/completions", body)).json()

    sent = msgspec.json.encode(upstream.requests[0].body).decode()
    assert "@example.com" not in sent
    assert secret not in sent
    assert '{\\"to\\":\\"[EMAIL]\\"}' in sent
    assert reply["policy_outcome"]["decision"] == "redacted"
    assert {"pii:email", "pii:secret"} <= set(reply["policy_outcome"]["reasons"])


async def test_embedding_inputs_are_redacted_too() -> None:
    vectors = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}]}
    upstream = ScriptedUpstream([Whole(vectors)], models=["m-embed"])
    async with stack_b(backend(upstream)) as node:
        answer = await node.post("/v1/embeddings", {"model": "m-embed", "input": "ann@example.com"})

    assert upstream.requests[0].body["input"] == ["[EMAIL]"]
    assert answer.json()["usage"]["estimated"] is True


async def test_when_the_detector_is_away_nothing_is_sent() -> None:
    upstream = ScriptedUpstream([completion()])
    async with stack_b(backend(upstream), pii=Away()) as node:
        answer = await node.chat(model="m-1")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert upstream.requests == []


async def test_when_the_ledger_is_away_nothing_is_sent_and_readiness_names_it() -> None:
    upstream = ScriptedUpstream([completion()])
    async with stack_b(backend(upstream), budget=Away()) as node:
        answer = await node.chat(model="m-1")
        ready = await node.http.get("/readyz")
        alive = await node.http.get("/healthz")

    assert answer.status_code == 503
    assert answer.headers["x-should-retry"] == "true"
    assert upstream.requests == []
    assert (ready.status_code, ready.json()["dependencies"]) == (503, {"budget": "unavailable"})
    assert alive.status_code == 200


async def test_the_next_backend_answers_when_the_first_can_not_and_both_are_on_the_receipt() -> None:
    first = ScriptedUpstream([Whole("overloaded", status=529)])
    second = ScriptedUpstream([completion("from the second", usage=usage(1, 2))])
    async with stack_b(backend(first, "first"), backend(second, "second")) as node:
        whole = (await node.chat(model="m-1")).json()

    assert whole["choices"][0]["message"]["content"] == "from the second"
    assert [(a["backend"], a["status"], a["reason"]) for a in whole["route"]["attempts"]] == [
        ("first", 529, "upstream_error"), ("second", 200, None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (Whole("", status=503), "from the second"),
        (Events([delta(role="assistant", content="")], done=False), "from the second"),
        (Events([delta(content="from the first")], done=False), "from the first"),
    ],
    ids=["refused", "broke off before content", "broke off after content"],
)
async def test_a_stream_falls_back_until_there_is_content_and_not_after(broken: Whole | Events, text: str) -> None:
    first = ScriptedUpstream([broken])
    second = ScriptedUpstream([Events([delta(content="from the second"), delta("stop")])])
    async with stack_b(backend(first, "first"), backend(second, "second")) as node:
        answer = await node.chat(model="m-1", stream=True)
        balance = await node.balance()

    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    told = [choice["delta"].get("content") for chunk in chunks for choice in chunk.get("choices", ())]
    assert "".join(piece or "" for piece in told) == text
    assert ("error" in chunks[-1]) is (text == "from the first") is (second.requests == [])
    assert balance.held == 0


async def test_a_final_refusal_is_not_tried_elsewhere() -> None:
    first = ScriptedUpstream([Whole({"error": {"param": "seed"}}, status=400)])
    second = ScriptedUpstream([completion()])
    async with stack_b(backend(first, "first"), backend(second, "second")) as node:
        answer = await node.chat(model="m-1")
        balance = await node.balance()

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "seed")
    assert second.requests == []
    assert (balance.settled, balance.held) == (0, 0)


async def test_max_tokens_upstream_is_what_is_held() -> None:
    upstream = ScriptedUpstream([completion()])
    async with stack_b(backend(upstream)) as node:
        await node.chat(model="m-1")
        await node.chat(model="m-1", max_completion_tokens=9, n=2)

    assert upstream.requests[0].body["max_tokens"] == node.deps.limits.default_output_tokens
    assert upstream.requests[1].body["max_tokens"] == 9
    assert upstream.requests[1].body["n"] == 2
    assert "max_completion_tokens" not in upstream.requests[1].body


async def test_a_models_own_limit_is_kept_and_told() -> None:
    upstream = ScriptedUpstream([completion()])
    card = ModelCard(id="m-1", upstream="m-1", max_tokens=32)
    async with stack_b(backend(upstream, models=(card,))) as node:
        refused = await node.chat(model="m-1", max_tokens=33)
        await node.chat(model="m-1")

    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "max_tokens")
    assert [received.body["max_tokens"] for received in upstream.requests] == [32]


async def test_a_model_of_nobody_and_a_model_of_others_are_refused_alike() -> None:
    upstream = ScriptedUpstream([completion()], models=["m-1", "m-2"])
    async with stack_b(backend(upstream), models=("m-1",)) as node:
        answers = [await node.chat(model=model) for model in ("m-2", "absent")]
        retrieved = [await node.get(f"/v1/models/{model}") for model in ("m-2", "absent")]
        listed = (await node.get("/v1/models")).json()

    for pair, status, code in ((answers, 403, "model_not_entitled"), (retrieved, 404, "not_found")):
        errors = [answer.json()["error"] for answer in pair]
        for error in errors:
            error.pop("correlation_id")
        assert errors[0] == errors[1]
        assert (pair[0].status_code, errors[0]["code"]) == (status, code)
    assert [model["id"] for model in listed["data"]] == ["m-1"]
    assert upstream.requests == []


async def test_model_names_with_colons_and_slashes_are_retrieved() -> None:
    upstream = ScriptedUpstream(models=["meta/llama3:8b"])
    async with stack_b(backend(upstream)) as node:
        plain, quoted = await node.get("/v1/models/meta/llama3:8b"), await node.get("/v1/models/meta%2Fllama3%3A8b")

    assert plain.json()["id"] == quoted.json()["id"] == "meta/llama3:8b"


async def test_a_disabled_tenant_is_refused_within_seconds() -> None:
    async with stack_b() as node:
        await node.deps.tenant.set_status(PLATFORM, CALLERS["acme"].tenant, "disabled")
        refused, other = await node.chat(), await node.chat(who="globex")

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tenant_disabled")
    assert other.status_code == 200


async def test_policy_check_decides_and_changes_nothing() -> None:
    upstream = ScriptedUpstream([completion()])
    async with stack_b(backend(upstream)) as node:
        before = await node.balance()
        body = {"model": "m-1", "messages": [{"role": "user", "content": "write to ann@example.com"}], "max_tokens": 10}
        verdict = (await node.post("/v1/policy/check", body)).json()
        after = await node.balance()
        absent = await node.post("/v1/policy/check", {**body, "model": "absent"})

    assert verdict["policy_outcome"] == {"decision": "redacted", "reasons": ["pii:email"]}
    assert verdict["findings"] == [{"kind": "email", "count": 1}]
    assert verdict["budget"]["fits"] is True
    assert verdict["tenant_id"] == "tnt_acme"
    assert before == after
    assert upstream.requests == []
    assert absent.json()["error"]["code"] == "model_not_entitled"


async def test_policy_check_sees_at_once_what_another_process_holds() -> None:
    body = {"model": "agentos-demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
    async with stack_b(limit=10_000) as node:
        before = (await node.post("/v1/policy/check", body)).json()["budget"]
        await node.deps.budget.reserve(CALLERS["acme"], 9_999, limit=10_000, lease=timedelta(minutes=1))
        after = (await node.post("/v1/policy/check", body)).json()["budget"]

    assert (before["held"], before["fits"]) == (0, True)
    assert (after["held"], after["fits"]) == (9_999, False)


async def test_every_answer_tells_what_is_left_of_the_budget() -> None:
    async with stack_b(limit=10_000) as node:
        first = await node.chat()
        refused = await node.chat(model="absent")
        anonymous = await node.http.get("/v1/models")

    spent = first.json()["usage"]["total_tokens"]
    assert first.headers["x-ratelimit-limit-tokens"] == "10000"
    assert refused.headers["x-ratelimit-remaining-tokens"] == str(10_000 - spent)
    assert first.headers["x-ratelimit-reset-tokens"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in anonymous.headers


async def test_two_tenants_do_not_share_a_budget() -> None:
    async with stack_b(limit=800) as node:
        while (await node.chat(max_tokens=50)).status_code == 200:
            pass
        other = await node.chat(who="globex", max_tokens=50)

    assert other.status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({}, b'{"model"', 400, "invalid_json"),
        ({}, b"[]", 422, "validation_failed"),
        ({}, b'{"model": "m", "messages": [], "messages": []}', 400, "invalid_json"),
        ({"content-type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
        ({"content-encoding": "gzip"}, b"{}", 415, "unsupported_media_type"),
        ({"x-tenant-id": "tnt_globex"}, b"{}", 403, "tenant_mismatch"),
        ({}, b'{"model": "m", "messages": [{"role": "user", "content": "\\u0000"}]}', 422, "validation_failed"),
        ({}, b'{"pad": "' + b"x" * 4_200_000 + b'"}', 413, "payload_too_large"),
    ],
    ids=["json", "list", "twice", "text", "gzip", "tenant", "nul", "large"],
)
async def test_bad_input_is_refused_at_the_edge_in_openai_words(
    headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    async with stack_b() as node:
        whole = {"authorization": "Bearer acme", "content-type": "application/json", **headers}
        answer = await node.http.post("/v1/chat/completions", content=body, headers=whole)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["type"] in {"invalid_request_error", "permission_error"}
    assert error["correlation_id"] == answer.headers["x-request-id"]


async def test_the_document_describes_every_route_with_its_limits() -> None:
    async with stack_b() as node:
        document = (await node.http.get("/openapi.json")).json()

    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert document["openapi"].startswith("3.1")
    assert {"text/event-stream", "application/json"} == chat["responses"]["200"]["content"].keys()
    assert chat["security"] == [{"bearer": ["models:invoke"]}]
    assert {"400", "401", "403", "413", "415", "422", "429", "502", "503", "504"} <= chat["responses"].keys()
    assert document["info"]["x-agentos-limits"]["max_messages"] == 2_048
    assert document["info"]["x-agentos-limits"].items() >= COMMON.items()
    error = document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]
    assert {"code", "type", "param", "policy_outcome", "budget", "route"} <= error.keys()
    assert document["paths"].keys() == {
        "/v1/chat/completions", "/v1/steps:cancel", "/v1/embeddings", "/v1/policy/check", "/v1/models",
        "/v1/models/{model}", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/me/permissions", "/healthz", "/readyz", "/openapi.json", "/metrics",
    }  # fmt: skip


async def test_metrics_tell_what_was_used_to_this_machine_only() -> None:
    async with stack_b() as node:
        await node.chat("write to ann@example.com")
        here = await node.http.get("/metrics")
        transport = httpx.ASGITransport(node.app, client=("203.0.113.7", 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as far:
            there = await far.get("/metrics")

    assert 'agentos_model_requests_total{backend="demo",model="agentos-demo"} 1.0' in here.text
    assert 'agentos_policy_redactions_total{kind="email"} 1.0' in here.text
    assert 'direction="completion"' in here.text
    assert there.status_code == 404


async def test_a_deadline_ends_a_silent_call_and_settles_it() -> None:
    class Silent(ScriptedUpstream):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["path"].endswith("/models"):
                await super().__call__(scope, receive, send)
                return
            await asyncio.Event().wait()

    with anyio.fail_after(10):
        async with stack_b(backend(Silent()), limits=Limits(request_s=1)) as node:
            answer = await node.chat(model="m-1")
            balance = await node.balance()

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    assert balance.held == 0
    # The prompt was sent, whatever became of it.
    assert 0 < balance.settled < 100
