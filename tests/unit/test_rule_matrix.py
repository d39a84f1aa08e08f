"""Every rule on every route: surface × stream × rule, generated from the routes that the gateway declares.

A route under `/v1` without a row fails; a rule that a row leaves out is left out with its reason.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import anyio
import pytest

from ports.budget import Balance, Budget
from ports.context import AuthContext
from ports.errors import PermissionDenied, Unavailable
from ports.pii import PiiCapabilities, Span
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import Backend, ModelCard
from stack_b.http.completions import SURFACES
from stack_b.http.routes import routes
from stack_b.limits import Limits
from tests.support.held_backend import HeldBackend
from tests.support.in_process import in_process
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_b import CALLERS, PLATFORM, StackB, stack_b

pytestmark = [pytest.mark.anyio]

Json: TypeAlias = Any  # JSON of a test
Where: TypeAlias = tuple[str, str]

SECRET: Final = "sk-proj-" + "a1B2" * 10
CARDS: Final = (
    ModelCard(id="m-1", upstream="m-1", max_tokens=64),
    ModelCard(id="m-embed", upstream="m-embed", chat=False, embed=True),
)
ASKS: Final = {"no token", "a wrong token", "no scope", "another tenant", "a disabled tenant", "an unknown query"}
READS: Final = {"not JSON", "another content type", "a body too large", "a member twice"}
MODEL: Final = {"a model of others", "a model unknown"}
STEERS: Final = {"steering", "widening"}
INSPECTS: Final = {"the detector away", "policy blocks"}
CALLS: Final = {
    "redaction", "the ledger away", "more than the budget", "a spent budget", "a budget in flight",
    "what is used is settled", "a receipt", "the backend's refusal of us",
}  # fmt: skip
WRITES: Final = {
    "more tokens than the node allows",
    "more tokens than the model writes",
    "the tokens held are the tokens told",
}
EVERY: Final = ASKS | READS | MODEL | STEERS | INSPECTS | CALLS | WRITES


@dataclass(frozen=True, kw_only=True)
class Row:
    """One route: how it is asked, and which rules don't concern it, with the reason."""

    path: str = ""
    """Where it is asked, if not at its template."""
    model: str = "m-1"
    body: Callable[[str, Json], dict[str, Json]] | None = None
    """The body around a text and a number of tokens; None for a GET."""
    limit: str = "max_tokens"
    streams: bool = False
    without: Mapping[str, str] = field(default_factory=dict)


def _without(*groups: set[str], reason: str) -> dict[str, str]:
    return {rule: reason for group in groups for rule in group}


def _chat(text: str, most: Json) -> dict[str, Json]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": most}


NO_BODY: Final = _without(READS, STEERS, INSPECTS, CALLS, WRITES, reason="it takes no body and calls nobody")
COUNTED: Final = _without(CALLS, reason="it calls no backend and spends nothing")

ROWS: Final[Mapping[Where, Row]] = {
    ("POST", "/v1/chat/completions"): Row(body=_chat, streams=True),
    ("POST", "/v1/responses"): Row(
        body=lambda text, most: {"input": text, "max_output_tokens": most}, limit="max_output_tokens", streams=True
    ),
    ("POST", "/v1/messages"): Row(body=_chat, streams=True),
    ("POST", "/v1/messages/count_tokens"): Row(
        body=lambda text, _: {"messages": [{"role": "user", "content": text}]},
        without=COUNTED | _without(WRITES, reason="it is told no number of tokens"),
    ),
    ("POST", "/v1/embeddings"): Row(
        model="m-embed",
        body=lambda text, _: {"input": text},
        without=_without(WRITES, reason="nothing is written"),
    ),
    ("POST", "/v1/policy/check"): Row(
        body=_chat,
        without=COUNTED
        | {"the tokens held are the tokens told": "it calls no backend"},
    ),
    ("POST", "/v1/steps:cancel"): Row(
        body=lambda text, _: {"step_key": text[:3]},
        without=_without(MODEL, STEERS, INSPECTS, CALLS, WRITES, reason="it names a call and begins none")
        | {"a disabled tenant": "it ends a call and begins none"},
    ),
    ("GET", "/v1/models"): Row(
        without=NO_BODY | _without(MODEL, reason="it lists what there is; test_stack_b_gateway has who sees what")
    ),
    ("GET", "/v1/models/{model}"): Row(path="/v1/models/m-1", without=NO_BODY | _without(MODEL, reason="404: see there")),
}  # fmt: skip


@dataclass(kw_only=True)
class Case:
    """One rule at one route, streamed or not."""

    where: Where
    row: Row
    stream: bool
    upstream: ScriptedUpstream

    async def ask(self, node: StackB, text: str = "hello", *, most: Json = 20, who: str = "acme", **more: Any) -> Any:
        """`more`: model, members, query, headers, content."""
        headers = {"authorization": f"Bearer {who}"} if who else {}
        path = (self.row.path or self.where[1]) + more.get("query", "")
        headers |= more.get("headers", {})
        if self.row.body is None:
            return await node.http.get(path, headers=headers)
        if "content" in more:
            return await node.http.post(path, content=more["content"], headers=headers)
        body = self.row.body(text, most) | more.get("members", {})
        if "steps" not in path:
            body["model"] = more.get("model", self.row.model)
        if self.stream:
            body["stream"] = True
        return await node.http.post(path, json=body, headers=headers)

    async def refused(self, node: StackB, status: int, code: str, *args: Any, **more: Any) -> dict[str, Json]:
        """Asked so, it is refused so, before any backend hears of it."""
        heard = len(self.upstream.requests)
        answer = await self.ask(node, *args, **more)
        error: dict[str, Json] = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert error["correlation_id"] == answer.headers["x-correlation-id"]
        assert len(self.upstream.requests) == heard
        return error

    @asynccontextmanager
    async def node(self, *more: Backend, **settings: Any) -> AsyncIterator[StackB]:
        dial_by = in_process(self.upstream)
        backend = OpenAiCompatible(
            name="up", base_url="http://up/v1", models=CARDS, api_key="sk-upstream", dial_by=dial_by
        )
        async with stack_b(*(more or (backend,)), **settings) as node:
            yield node


Rule: TypeAlias = Callable[[Case], Awaitable[None]]
RULES: Final[dict[str, Rule]] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    def named(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return named


class Away:
    """Any port, out of reach."""

    capabilities = PiiCapabilities()

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        raise Unavailable(f"no ledger for {auth.tenant} with {limit}")

    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        raise Unavailable(f"no ledger for {auth.tenant}")

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        raise Unavailable(f"no detector for {auth.tenant} and {len(text)}")


class Blocking:
    """A policy that wants none of it."""

    capabilities = PiiCapabilities()

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        raise PermissionDenied(f"{auth.tenant} may not say that ({len(text)})", code="policy_blocked")


@rule("no token")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 401, "unauthenticated", who="")


@rule("a wrong token")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 401, "unauthenticated", who="nobody")


@rule("no scope")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 403, "insufficient_scope", who="reader")


@rule("another tenant")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 403, "tenant_mismatch", headers={"x-tenant-id": "tnt_globex"})


@rule("a disabled tenant")
async def _(case: Case) -> None:
    async with case.node() as node:
        await node.deps.tenant.set_status(PLATFORM, CALLERS["acme"].tenant, "disabled")
        await case.refused(node, 403, "tenant_disabled")


@rule("an unknown query")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 400, "invalid_request", query="?debug=1")


@rule("not JSON")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 400, "invalid_json", content=b"{", headers={"content-type": "application/json"})


@rule("a member twice")
async def _(case: Case) -> None:
    body = b'{"model": "m-1", "model": "m-2"}'
    async with case.node() as node:
        await case.refused(node, 400, "invalid_json", content=body, headers={"content-type": "application/json"})


@rule("another content type")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 415, "unsupported_media_type", content=b"{}", headers={"content-type": "text/plain"})


@rule("a body too large")
async def _(case: Case) -> None:
    async with case.node(limits=Limits(body_bytes=1_000)) as node:
        large = json.dumps({"pad": "x" * 1_100_000}).encode()
        await case.refused(node, 413, "payload_too_large", content=large, headers={"content-type": "application/json"})


@rule("a model of others")
async def _(case: Case) -> None:
    async with case.node(models=("m-0",)) as node:
        await case.refused(node, 403, "model_not_entitled")


@rule("a model unknown")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.refused(node, 403, "model_not_entitled", model="m-9")


@rule("steering")
async def _(case: Case) -> None:
    async with case.node() as node:
        error = await case.refused(node, 422, "validation_failed", members={"base_url": "https://evil.test"})
    assert error["param"] == "base_url"


@rule("widening")
async def _(case: Case) -> None:
    async with case.node() as node:
        error = await case.refused(node, 422, "validation_failed", members={"best_of": 20})
    assert error["param"] == "best_of"


@rule("the detector away")
async def _(case: Case) -> None:
    async with case.node(pii=Away()) as node:
        await case.refused(node, 503, "unavailable")


@rule("policy blocks")
async def _(case: Case) -> None:
    async with case.node(pii=Blocking()) as node:
        await case.refused(node, 403, "policy_blocked")
        assert 'agentos_policy_blocks_total{reason="request"} 1.0' in node.deps.metrics.render().decode()


@rule("redaction")
async def _(case: Case) -> None:
    async with case.node() as node:
        answer = await case.ask(node, f"ann@example.com pays with {SECRET}")
    sent = json.dumps(case.upstream.requests[0].body)
    assert "ann@example.com" not in sent
    assert SECRET not in sent
    assert "[EMAIL]" in sent
    assert '"decision":"redacted"' in answer.text


@rule("the ledger away")
async def _(case: Case) -> None:
    async with case.node(budget=Away()) as node:
        await case.refused(node, 503, "unavailable")


@rule("more than the budget")
async def _(case: Case) -> None:
    async with case.node(limit=500) as node:
        error = await case.refused(node, 400, "request_exceeds_budget", "x" * 600)
    assert error["budget"]["limit"] == 500


@rule("a spent budget")
async def _(case: Case) -> None:
    async with case.node(limit=400) as node:
        case.upstream.script.insert(0, completion("hi", usage=usage(300, 100)))
        await node.chat(model="m-1", max_tokens=20)
        answer = await case.ask(node)
        error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (429, "budget_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert len(case.upstream.requests) == 1


@rule("a budget in flight")
async def _(case: Case) -> None:
    """Somebody else's call holds nearly all of it."""
    other = HeldBackend()
    embedding = OpenAiCompatible(
        name="up", base_url="http://up/v1", models=CARDS[1:], dial_by=in_process(case.upstream)
    )
    async with case.node(other, embedding, limit=1_000) as node, anyio.create_task_group() as group:
        body = {"model": "m-1", **_chat("", 1)}
        least = (await node.post("/v1/policy/check", body)).json()["budget"]["would_hold"]
        group.start_soon(node.post, "/v1/chat/completions", {"model": "m-1", **_chat("x" * (998 - least), 1)})
        await other.begun.wait()
        answer = await case.ask(node)
        other.let_go.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "budget_in_flight")
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert answer.headers["x-should-retry"] == "true"


@rule("what is used is settled")
async def _(case: Case) -> None:
    async with case.node() as node:
        answer = await case.ask(node)
        balance = await node.balance()
    assert answer.status_code == 200
    assert balance.held == 0
    assert balance.settled == (7 if case.row.model == "m-embed" else 12)


@rule("a receipt")
async def _(case: Case) -> None:
    async with case.node() as node:
        answer = await case.ask(node)
    for part in (f'"correlation_id":"{answer.headers["x-correlation-id"]}"', '"cost_nanousd":0', '"backend":"up"',
                 '"policy_outcome":{"decision":"allowed"', '"tenant_id":"tnt_acme"'):  # fmt: skip
        assert part in answer.text


@rule("the backend's refusal of us")
async def _(case: Case) -> None:
    refusal = Whole(
        {"error": {"message": "Incorrect API key: sk-upstream"}}, status=401, headers=(("x-internal", "1"),)
    )
    case.upstream.script[:] = [refusal]
    async with case.node() as node:
        answer = await case.ask(node)
        balance = await node.balance()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_auth_error")
    assert "sk-upstream" not in answer.text
    assert "x-internal" not in answer.headers
    assert (balance.settled, balance.held) == (0, 0)


@rule("more tokens than the node allows")
async def _(case: Case) -> None:
    async with case.node() as node:
        for most in (0, -1, "20", 1.5, Limits().max_tokens + 1):
            error = await case.refused(node, 422, "validation_failed", most=most)
            assert error["param"] == case.row.limit


@rule("more tokens than the model writes")
async def _(case: Case) -> None:
    async with case.node() as node:
        error = await case.refused(node, 422, "validation_failed", most=65)
    assert error["param"] == case.row.limit


@rule("the tokens held are the tokens told")
async def _(case: Case) -> None:
    async with case.node() as node:
        await case.ask(node, most=33)
    assert case.upstream.requests[0].body["max_tokens"] == 33


def upstream_for(row: Row, *, stream: bool) -> ScriptedUpstream:
    """Answers what the route asks a backend for."""
    if row.model == "m-embed":
        vectors = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}]
        whole = Whole({"object": "list", "data": vectors, "usage": usage(7, 0)})
        return ScriptedUpstream([whole])
    told = {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)}
    events = Events([delta(role="assistant", content="hi"), delta("stop"), told])
    return ScriptedUpstream([events if stream else completion("hi", usage=usage(7, 5))])


def cases() -> Sequence[tuple[Where, bool, str]]:
    return [
        (where, stream, name)
        for where, row in ROWS.items()
        for stream in ((False, True) if row.streams else (False,))
        for name in sorted(EVERY - row.without.keys())
    ]


def test_every_route_under_v1_has_its_row() -> None:
    declared = {(route.method, route.template) for route in routes(Limits()).routes if route.template.startswith("/v1")}

    assert ROWS.keys() == declared


def test_every_surface_meets_every_rule_both_ways() -> None:
    rows = {path: ROWS["POST", path] for path in SURFACES}

    assert [path for path, row in rows.items() if row.without or not row.streams] == []


def test_every_rule_is_there_and_every_exception_names_one() -> None:
    assert RULES.keys() == EVERY
    assert [name for row in ROWS.values() for name in row.without if name not in RULES] == []


@pytest.mark.parametrize(
    ("where", "stream", "name"),
    cases(),
    ids=[f"{where[1]}-{'stream' if stream else 'whole'}-{name}" for where, stream, name in cases()],
)
async def test_a_rule_holds_at_a_route(where: Where, name: str, *, stream: bool) -> None:
    row = ROWS[where]
    with anyio.fail_after(10):
        await RULES[name](Case(where=where, row=row, stream=stream, upstream=upstream_for(row, stream=stream)))
