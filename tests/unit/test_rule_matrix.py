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
from msgspec.structs import replace

from ports.auth import mismatch
from ports.budget import Balance, Budget
from ports.context import AuthContext, PolicyContext
from ports.errors import PermissionDenied, Unavailable
from ports.pii import PiiCapabilities, Span
from ports.policy import Rule as PolicyRule
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import Backend, ModelCard
from stack_b.backends.reach import Reach
from stack_b.http.completions import SURFACES
from stack_b.http.routes import routes
from stack_b.limits import Limits
from stack_b.policies.problems import USABLE
from stack_b.policies.rules import STAGES
from stack_b.routing.rules import RoutingRules
from tests.support.held_backend import HeldBackend
from tests.support.in_process import in_process
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_b import CALLERS, PLATFORM, StackB, Tokens, stack_b

pytestmark = [pytest.mark.anyio]

Json: TypeAlias = Any  # JSON of a test
Where: TypeAlias = tuple[str, str]

SECRET: Final = "sk-proj-" + "a1B2" * 10
CARDS: Final = (
    ModelCard(id="m-1", upstream="m-1", max_tokens=64),
    ModelCard(id="m-embed", upstream="m-embed", chat=False, embed=True),
)
ASKS: Final = {
    "no token", "a wrong token", "the key store away", "no scope", "another tenant", "a disabled tenant",
    "an unknown query",
}  # fmt: skip
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
TOOL: Final = "pay_bill"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A condition of a policy's rule at one stage, with what it applies to and the closest thing that it doesn't."""

    condition: dict[str, Json]
    text: str = "hello"
    answer: Json = "hi"
    """What the backend says, or the arguments with which it calls `TOOL`."""
    members: str = ""
    """Which of the row's members the request has."""
    spared: dict[str, Json] = field(default_factory=dict)
    """The condition instead, under which the same is let through."""


WORD: Final = "blue heron"
CALL: Final = {"to": "mallory", "amount": 700}
EXAMPLES: Final[Mapping[tuple[str, str], Example]] = {
    ("input", "keywords"): Example(condition={"keywords": [WORD]}, text="a \u200bBlue\u00a0Her\u00adon",
                                   spared={"keywords": ["blue her"]}),
    ("input", "patterns"): Example(condition={"patterns": ["AB-\\d{4}"]}, text="see \uff21b-1234",
                                   spared={"patterns": ["AB-\\d{5}"]}),
    ("input", "max_tokens"): Example(condition={"max_tokens": 19}, spared={"max_tokens": 20}),
    ("output", "keywords"): Example(condition={"keywords": [WORD]}, answer="the Blue\u200b Heron flies",
                                    spared={"keywords": ["red heron"]}),
    ("output", "patterns"): Example(condition={"patterns": ["AB-\\d{4}"]}, answer="see ab-\uff11234",
                                    spared={"patterns": ["AB-\\d{5}"]}),
    ("offer", "functions"): Example(condition={"functions": ["pay_*"]}, members="tools",
                                    spared={"functions": ["pay"]}),
    ("call", "functions"): Example(condition={"functions": ["PAY_*"]}, answer=CALL, members="tools",
                                   spared={"functions": ["pay"]}),
    ("call", "arguments"): Example(condition={"functions": ["*"], "arguments": [{"path": "amount", "least": 500}]},
                                   answer=CALL, members="tools",
                                   spared={"functions": ["*"], "arguments": [{"path": "amount", "least": 701}]}),
}  # fmt: skip
"""By stage and condition: those that are about what is said, offered or called."""
CALLER: Final[Mapping[str, tuple[list[str], list[str]]]] = {
    "models": (["m-*"], ["m"]),
    "tiers": (["m-tier"], ["m-other"]),
    "backends": (["u*"], ["down"]),
    "principals": (["usr_a*"], ["usr_other"]),
    "roles": (["clerk"], ["boss"]),
    "agents": (["agt_ledger"], ["agt_other"]),
    "classifications": (["secret"], ["internal"]),
    "regions": (["eu"], ["us"]),
}
"""Conditions about who asks whom, which every stage knows: one that applies here, and one that doesn't."""
STAGED: Final[Mapping[str, str]] = {
    "input": "max_tokens",
    "output": "keywords",
    "offer": "functions",
    "call": "functions",
}
"""What a condition about the caller is tried together with, at each stage."""


def policy_rules() -> list[tuple[str, str]]:
    """Every condition at every stage where it means something: generated, so that a new one has its row or fails."""
    about_caller = [(stage, name) for stage in STAGES for name in CALLER]
    return [*EXAMPLES, *about_caller]


POLICY: Final = {f"{stage} policy: {name}" for stage, name in policy_rules()}
ON_ANSWERS: Final = {name for name in POLICY if name.startswith(("output", "call"))}
ON_TOOLS: Final = {name for name in POLICY if name.startswith(("offer", "call"))}
ON_WRITING: Final = {"input policy: max_tokens"} | {f"input policy: {name}" for name in CALLER}
EVERY: Final = ASKS | READS | MODEL | STEERS | INSPECTS | CALLS | WRITES | POLICY


@dataclass(frozen=True, kw_only=True)
class Row:
    """One route: how it is asked, and which rules don't concern it, with the reason."""

    path: str = ""
    """Where it is asked, if not at its template."""
    model: str = "m-1"
    body: Callable[[str, Json], dict[str, Json]] | None = None
    """The body around a text and a number of tokens; None for a GET."""
    limit: str = "max_tokens"
    tools: dict[str, Json] = field(
        default_factory=lambda: {"tools": [{"type": "function", "function": {"name": TOOL}}]}
    )
    """The members that offer `TOOL`."""
    streams: bool = False
    without: Mapping[str, str] = field(default_factory=dict)


def _without(*groups: set[str], reason: str) -> dict[str, str]:
    return {rule: reason for group in groups for rule in group}


def _chat(text: str, most: Json) -> dict[str, Json]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": most}


NO_BODY: Final = _without(READS, STEERS, INSPECTS, CALLS, WRITES, POLICY, reason="it takes no body and calls nobody")
COUNTED: Final = _without(CALLS, reason="it calls no backend and spends nothing")
UNANSWERED: Final = _without(ON_ANSWERS, reason="no model answers")

ROWS: Final[Mapping[Where, Row]] = {
    ("POST", "/v1/chat/completions"): Row(body=_chat, streams=True),
    ("POST", "/v1/responses"): Row(
        body=lambda text, most: {"input": text, "max_output_tokens": most},
        limit="max_output_tokens",
        tools={"tools": [{"type": "function", "name": TOOL, "parameters": {}}]},
        streams=True,
    ),
    ("POST", "/v1/messages"): Row(
        body=_chat,
        tools={"tools": [{"name": TOOL, "input_schema": {"type": "object"}}]},
        streams=True,
    ),
    ("POST", "/v1/messages/count_tokens"): Row(
        body=lambda text, _: {"messages": [{"role": "user", "content": text}]},
        without=COUNTED
        | _without(WRITES, reason="it is told no number of tokens")
        | _without(POLICY, reason="it answers with a number, from what no backend is sent"),
    ),
    ("POST", "/v1/embeddings"): Row(
        model="m-embed",
        body=lambda text, _: {"input": text},
        without=_without(WRITES, ON_WRITING, reason="nothing is written")
        | UNANSWERED
        | _without(ON_TOOLS, reason="there are no tools for a text's vector"),
    ),
    ("POST", "/v1/policy/check"): Row(
        body=_chat,
        without=COUNTED
        | UNANSWERED
        | {"the tokens held are the tokens told": "it calls no backend"},
    ),
    ("POST", "/v1/steps:cancel"): Row(
        body=lambda text, _: {"step_key": text[:3]},
        without=_without(MODEL, STEERS, INSPECTS, CALLS, WRITES, POLICY, reason="it names a call and begins none")
        | {"a disabled tenant": "it ends a call and begins none"},
    ),
    ("GET", "/v1/models"): Row(
        without=NO_BODY | _without(MODEL, reason="it lists what there is; test_stack_b_gateway has who sees what")
    ),
    ("GET", "/v1/models/{model}"): Row(path="/v1/models/m-1", without=NO_BODY | _without(MODEL, reason="404: see there")),
    ("GET", "/v1/me/permissions"): Row(
        without=NO_BODY
        | _without(MODEL, reason="it names none")
        | {
            "no scope": "who may nothing is told so",
            "a disabled tenant": "its tokens are refused, where they are verified",
        },
    ),
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

    async def verify(self, token: str) -> AuthContext:
        raise Unavailable(f"no store for a token of {len(token)} characters")

    async def act_as(self, _: str, __: str, /) -> AuthContext:
        raise mismatch()

    def elsewhere(self) -> None:
        return None

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        raise Unavailable(f"no detector for {auth.tenant} and {len(text)}")


class Blocking:
    """A policy that wants none of it."""

    capabilities = PiiCapabilities()

    def elsewhere(self) -> None:
        return None

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


@rule("the key store away")
async def _(case: Case) -> None:
    """Nobody is told that a good key is bad: a client would throw it away, or log its user out."""
    async with case.node(verifier=Away()) as node:
        error = await case.refused(node, 503, "unavailable")
    assert error["retryable"] is True


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


def _policy_rule(stage: str, condition: str) -> Rule:
    async def met(case: Case) -> None:
        about_caller = condition in CALLER
        example = EXAMPLES[stage, STAGED[stage] if about_caller else condition]
        applies, spares = example.condition, {**example.condition, **example.spared}
        if about_caller:
            applies, spares = (example.condition | {condition: names} for names in CALLER[condition])
        denied = {"id": "no", "effect": "deny", "on": [stage]}
        reason = {"input": "rule", "output": "rule_output", "offer": "rule_offer", "call": "rule_call"}[stage]
        # The node's is read first, and an answer ends there; of a request everything that is against it is told.
        policies = ("house", "tenant") if stage in {"input", "offer"} else ("house",)
        both = {"node_rules": [denied | applies], "rules": [denied | applies]}
        await _denied(case, stage, example, [f"{reason}:{policy}/no" for policy in policies], both)
        await _let_through(case, stage, example, {"rules": [denied | spares]})

    return met


def _ask_of(case: Case, example: Example) -> dict[str, Json]:
    members = case.row.tools if example.members else {}
    return {"members": members, "headers": {"x-agent-id": "agt_ledger"}, "model": "m-tier"}


@asynccontextmanager
async def _node_for(case: Case, example: Example, settings: dict[str, Json]) -> AsyncIterator[StackB]:
    case.upstream.script[:] = (
        [upstream_answer(example.answer, stream=case.stream)] if case.row.model == "m-1" else [VECTORS]
    )
    case.upstream.requests.clear()
    routing = RoutingRules(tiers={"m-tier": (case.row.model,)})
    tokens = Tokens({"acme": SECRETIVE})
    reaches = {"up": Reach(regions=frozenset({"eu"}), classifications=frozenset({"*"}))}
    async with case.node(routing=routing, verifier=tokens, reaches=reaches, **settings) as node:
        yield node


async def _denied(case: Case, stage: str, example: Example, reasons: list[str], settings: dict[str, Json]) -> None:
    async with _node_for(case, example, settings) as node:
        if case.where[1] == "/v1/policy/check":
            verdict = (await case.ask(node, example.text, **_ask_of(case, example))).json()
            assert verdict["policy_outcome"] == {"decision": "blocked", "reasons": reasons}
            assert verdict["refusal"] == ("tool_not_permitted" if stage == "offer" else "policy_blocked")
        elif stage in {"input", "offer"}:
            code = "tool_not_permitted" if stage == "offer" else "policy_blocked"
            error = await case.refused(node, 403, code, example.text, **_ask_of(case, example))
            assert error["policy_outcome"] == {"decision": "blocked", "reasons": reasons}
            assert (TOOL in error["message"]) is (stage == "offer")
        else:
            answer = await case.ask(node, example.text, **_ask_of(case, example))
            assert answer.status_code == 200, answer.text
            assert f'"policy_outcome":{{"decision":"blocked","reasons":["{reasons[0]}"]}}' in answer.text
            assert any(end in answer.text for end in BLOCKED_ENDS[case.where[1]]), answer.text
            assert "eron" not in answer.text
            assert "mallory" not in answer.text
            assert (await node.balance()).settled == 12


async def _let_through(case: Case, stage: str, example: Example, settings: dict[str, Json]) -> None:
    async with _node_for(case, example, settings) as node:
        answer = await case.ask(node, example.text, **_ask_of(case, example))
        assert answer.status_code == 200, answer.text
        assert '"decision":"blocked"' not in answer.text
        if stage == "call":
            assert "mallory" in answer.text


for _stage, _condition in policy_rules():
    RULES[f"{_stage} policy: {_condition}"] = _policy_rule(_stage, _condition)

BLOCKED_ENDS: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/chat/completions": ('"finish_reason":"content_filter"',),
    "/v1/responses": ('"incomplete_details":{"reason":"content_filter"}',),
    "/v1/messages": ('"stop_reason":"refusal"',),
}
"""How each dialect says that an answer was cut off by policy."""
SECRETIVE: Final = replace(
    CALLERS["acme"], roles=frozenset({"clerk"}), policy=PolicyContext(classification="secret", regions=("eu",))
)
VECTORS: Final = Whole(
    {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}], "usage": usage(7, 0)}
)


def upstream_answer(said: Json, *, stream: bool) -> Whole | Events:
    """A text, or a call of `TOOL` with arguments."""
    told = {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)}
    if isinstance(said, str):
        if not stream:
            return completion(said, usage=usage(7, 5))
        return Events([delta(role="assistant", content=""), *(delta(content=one) for one in said), delta("stop"), told])
    function = {"name": TOOL, "arguments": json.dumps(said)}
    call = {"id": "call_1", "type": "function", "function": function}
    if not stream:
        return completion("", usage=usage(7, 5), content=None, tool_calls=[call])
    pieces = [delta(tool_calls=[{"index": 0, **call, "function": {"name": TOOL, "arguments": ""}}])]
    pieces += [delta(tool_calls=[{"index": 0, "function": {"arguments": one}}]) for one in function["arguments"]]
    return Events([delta(role="assistant", content=None), *pieces, delta("tool_calls"), told])


def upstream_for(row: Row, *, stream: bool) -> ScriptedUpstream:
    """Answers what the route asks a backend for."""
    if row.model == "m-embed":
        return ScriptedUpstream([VECTORS])
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


def test_every_condition_of_a_rule_has_its_row_at_every_stage() -> None:
    conditions = set(PolicyRule.__struct_fields__) - {"id", "effect", "on"}

    assert {name for _, name in policy_rules()} == conditions
    for stage in STAGES:
        known = {name for name in conditions if stage in USABLE.get(name, STAGES)}
        assert {name for at, name in policy_rules() if at == stage} == known


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
