"""`/v1/policy/check` against the live decision, on 10,000 generated requests; both against a naive reading of the rules.

A world is a node with its policies, routes and backends, and a tenant with its callers; requests of each surface are drawn
in it. Nothing here shares code with what decides, except the parsers.
"""

import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import pytest
from msgspec.structs import replace

from observability.metrics import Metrics
from ports.budget import Budget
from ports.context import AuthContext, PolicyContext
from ports.errors import AgentOSError
from ports.ids import PrincipalId
from stack_b.backends.catalog import Candidate
from stack_b.backends.protocol import ModelCard
from stack_b.backends.reach import Reach
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.check import Verdict
from stack_b.chunks import Piece, written_out
from stack_b.http.completions import SURFACES
from stack_b.http.parse import chat_call, embed_call
from stack_b.limits import Limits
from stack_b.pipeline import Pipeline
from stack_b.policies.desk import Ruled
from stack_b.prepare import Preparation
from stack_b.routing.rules import Canary, RoutingRules
from stack_b.tell import Tell
from tests.support.scripted_upstream import completion, delta, usage
from tests.support.stack_b import CALLERS, PLATFORM, stack_b

pytestmark = [pytest.mark.anyio]

Json: TypeAlias = Any  # JSON of a test

REQUESTS: Final = 10_000
WORLDS: Final = 80
SEED: Final = 20261127
LIMITS: Final = Limits()
WORDS: Final = ("heron", "falcon", "otter", "mail ann@example.com", "the", "report", "is", "due")
TOOLS: Final = ("get_rate", "get_time", "pay_bill", "wipe")
PARAMETERS: Final = {"type": "object"}
AGENTS: Final = ("", "agt_a", "agt_b")
PATHS: Final = (*SURFACES, "/v1/embeddings")
NAMES: Final = ("m-1", "m-1", "m-2", "m-3", "fast", "fast", "best", "quick", "quick", "m-9")
READS: Final = {"balance", "budgets", "standing"}
BUDGET: Final = {"budget_exceeded", "budget_in_flight", "request_exceeds_budget"}
ROUTING: Final = RoutingRules(
    aliases={"quick": "fast"},
    tiers={"fast": ("m-1", "m-3"), "best": ("m-2",)},
    canaries=(Canary(experiment="x", name="m-1", model="m-2", percent=50),),
)
SERVED: Final = {"up": ("m-1", "m-2"), "alt": ("m-2", "m-3")}
WRITES_AT_MOST: Final = {"m-1": None, "m-2": None, "m-3": 64}


class Instant:
    """Satisfies `stack_b.backends.protocol.Backend`: answers at once, and always the same."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel_stops_billing(self, *, streamed: bool) -> bool:
        return streamed

    async def models(self) -> tuple[ModelCard, ...]:
        cards = [ModelCard(id=one, upstream=one, max_tokens=WRITES_AT_MOST[one]) for one in SERVED[self.name]]
        return (*cards, ModelCard(id="m-embed", upstream="m-embed", chat=False, embed=True))

    async def chat(self, _model: str, _body: dict[str, Json], _max_tokens: int) -> dict[str, Json]:
        answer: dict[str, Json] = completion("fine", usage=usage(10, 5)).body
        return answer

    async def stream(
        self, _model: str, _body: dict[str, Json], _max_tokens: int
    ) -> AsyncGenerator[dict[str, Json], None]:
        yield delta(content="fine")
        yield delta("stop")
        yield {"id": "up", "choices": [], "usage": usage(10, 5)}

    async def embed(self, _model: str, body: dict[str, Json]) -> dict[str, Json]:
        data = [{"object": "embedding", "index": number, "embedding": [0.5]} for number, _ in enumerate(body["input"])]
        return {"object": "list", "data": data, "usage": usage(10, 0)}


@dataclass(kw_only=True)
class World:
    house: list[dict[str, Json]]
    own: list[dict[str, Json]]
    modes: dict[str, str]
    entitled: dict[str, Json]
    models: tuple[str, ...]
    reaches: dict[str, Reach]
    limit: int
    budget: Budget | None
    callers: list[AuthContext] = field(default_factory=list)


@dataclass(kw_only=True)
class Request:
    """What is asked, before any dialect."""

    path: str
    model: str
    texts: list[str]
    stream: bool
    n: int
    most: int | None
    tools: list[str]
    agent: str
    caller: AuthContext

    def chat(self) -> dict[str, Json]:
        # The same to the byte as the surface's own: budgets count them.
        tools = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in self.tools]
        members = {"n": self.n, "max_tokens": self.most, "tools": tools or None}
        metadata = {"metadata": {"agent_id": self.agent}} if self.agent else {}
        messages = [{"role": "user", "content": text} for text in self.texts]
        given = {name: value for name, value in members.items() if value is not None}
        return {"model": self.model, "messages": messages, **given, **metadata, "stream": self.stream}

    def on_surface(self) -> dict[str, Json]:
        if self.path == "/v1/chat/completions":
            return self.chat()
        body: dict[str, Json] = {"model": self.model, "stream": self.stream}
        if self.path == "/v1/responses":
            body["input"] = [{"role": "user", "content": text} for text in self.texts]
            body |= {"max_output_tokens": self.most} if self.most is not None else {}
            body |= {"metadata": {"agent_id": self.agent}} if self.agent else {}
            tools = [{"type": "function", "name": name, "parameters": PARAMETERS} for name in self.tools]
        else:
            body |= {"messages": [{"role": "user", "content": text} for text in self.texts], "max_tokens": self.most}
            tools = [{"name": name, "input_schema": PARAMETERS} for name in self.tools]
        return body | ({"tools": tools} if tools else {})

    def calls(self) -> tuple[ChatCall | EmbedCall, ChatCall | EmbedCall]:
        """As `/v1/policy/check` reads it, and as its surface does."""
        if self.path == "/v1/embeddings":
            body: dict[str, Json] = {"model": self.model, "input": self.texts}
            body |= {"metadata": {"agent_id": self.agent}} if self.agent else {}
            return embed_call(body, LIMITS), embed_call(body, LIMITS)
        return chat_call(self.chat(), LIMITS), SURFACES[self.path](self.on_surface(), LIMITS)[0]


def a_world(draw: random.Random) -> World:
    some: Any = lambda *values: draw.choice(values)  # noqa: E731 - one word for a choice
    modes = {"email": some("redact", "block", "allow", "reversible")}
    entitled: dict[str, Json] = {}
    if draw.random() < 0.2:
        entitled["tiers"] = some(("fast",), ("best",), ("*",))
    if draw.random() < 0.2:
        entitled["backends"] = some(("up",), ("alt",))
    if draw.random() < 0.1:
        entitled["regions"] = some(("eu",), ("us", "eu"))
    callers = [
        replace(
            CALLERS["acme"],
            principal=PrincipalId(f"usr_{name}"),
            roles=frozenset(some((), ("clerk",), ("boss", "clerk"))),
            policy=PolicyContext(classification=some(*["internal"] * 4, "secret"), regions=some(*[()] * 5, ("eu",))),
        )
        for name in ("ann", "ben", "svc")
    ]
    return World(
        house=_rules(draw, most=4),
        own=_rules(draw, most=5),
        modes=modes,
        entitled=entitled,
        models=some(("*",), ("*",), ("*",), ("m-1", "m-3", "m-embed"), ("m-2",)),
        reaches=some(
            {},
            dict.fromkeys(("up", "alt"), Reach(regions=frozenset({"eu"}), classifications=frozenset({"*"}))),
            dict.fromkeys(("up", "alt"), Reach(regions=frozenset({"eu"}), classifications=frozenset({"*"}))),
            {"up": Reach(regions=frozenset({"eu"}), classifications=frozenset({"*"}))},
            {"alt": Reach(classifications=frozenset({"secret"})), "up": Reach(regions=frozenset({"us"}))},
        ),
        limit=some(1_000_000, 1_000_000, 3_000, 400),
        budget=some(None, None, Budget(id="agents", limit=5_000, scope="agent"), Budget(id="all", limit=2_000)),
        callers=callers,
    )


def _rules(draw: random.Random, *, most: int) -> list[dict[str, Json]]:
    conditions: list[dict[str, Json]] = [
        {"keywords": [draw.choice(WORDS[:3])]},
        {"patterns": [draw.choice(("her.n", "o{1}tt?er"))]},
        {"max_tokens": draw.choice((10, 50, 4_000))},
        {"models": [draw.choice(("m-1", "m-2", "m-*"))]},
        {"backends": [draw.choice(("up", "alt"))]},
        {"tiers": [draw.choice(("fast", "b*"))]},
        {"principals": [draw.choice(("usr_a*", "usr_ben"))]},
        {"roles": ["clerk"]},
        {"agents": ["agt_a"]},
        {"classifications": ["secret"]},
        {"regions": ["eu"]},
    ]
    rules: list[dict[str, Json]] = []
    for number in range(draw.randint(0, most)):
        rule: dict[str, Json] = {"id": f"r{number}", "effect": draw.choice(("allow", "deny", "deny"))}
        for condition in draw.sample(conditions, draw.randint(1, 2)):
            rule |= condition
        if draw.random() < 0.45:
            rule = {name: value for name, value in rule.items() if name not in {"keywords", "patterns", "max_tokens"}}
            rule |= {"on": ["offer"], "functions": [draw.choice(("get_*", "pay_bill", "*", "w*e"))]}
        rules.append(rule)
    # An allow that nothing follows is refused: these do.
    last = {"effect": "deny", "principals": ["usr_svc"], "models": ["m-3"]}
    rules.append({"id": "last-offer", "on": ["offer"], "functions": ["wipe"], **last})
    rules.append({"id": "last-input", **last})
    return rules


def a_request(draw: random.Random, world: World) -> Request:
    path = draw.choice(PATHS)
    embeds = path == "/v1/embeddings"
    said = [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(draw.randint(1, 3))]
    return Request(
        path=path,
        model=draw.choice(("m-embed", "m-embed", "m-embed", "m-embed", "fast")) if embeds else draw.choice(NAMES),
        texts=said,
        stream=draw.random() < 0.4,
        n=draw.choice((1, 1, 1, 3)) if path == "/v1/chat/completions" else 1,
        most=draw.choice((5, 20, 60, 200)) if path == "/v1/messages" or draw.random() < 0.8 else None,
        tools=[] if embeds else draw.sample(TOOLS, draw.choice((0, 0, 1, 2))),
        # Anthropic's metadata has no place for it.
        agent="" if path == "/v1/messages" else draw.choice(AGENTS),
        caller=draw.choice(world.callers),
    )


# The naive reading.


def expected(world: World, asked: Request) -> tuple[str, set[str]]:
    """What comes of it as far as rules and entitlements go: a code (empty: let through), and the reasons."""
    candidates = _may_serve(world, asked)
    if not candidates:
        return "model_not_entitled", set()
    against = {
        one: [*_against("house", world.house, asked, one), *_against("tenant", world.own, asked, one)]
        for one in candidates
    }
    if not all(against.values()):
        return "", set()
    reasons = {reason for found in against.values() for reason in found}
    tools_only = all(reason.startswith("rule_offer") for reason in reasons)
    return "tool_not_permitted" if tools_only else "policy_blocked", reasons


def _may_serve(world: World, asked: Request) -> list[tuple[str, str]]:
    name = ROUTING.aliases.get(asked.model, asked.model)
    tiers = world.entitled.get("tiers", ("*",))
    if name in ROUTING.tiers and "*" not in tiers and name not in tiers:
        return []
    names = [*ROUTING.tiers.get(name, (name,)), *_canary(asked)]
    if asked.path == "/v1/embeddings":
        names = [one for one in names if one == "m-embed"]
    served: dict[str, tuple[str, ...]] = dict(SERVED)
    if asked.path == "/v1/embeddings":
        served = dict.fromkeys(SERVED, ("m-embed",))
    found = [(backend, model) for backend, models in served.items() for model in models if model in names]
    return [one for one in dict.fromkeys(found) if _reaches(world, asked.caller.policy, *one)]


def _canary(asked: Request) -> list[str]:
    from stack_b.routing.canary import drawn

    names_agent = asked.agent and asked.path != "/v1/embeddings"
    by = (asked.caller.tenant, "agent", asked.agent) if names_agent else (asked.caller.tenant, asked.caller.principal)
    return [one.model for one in ROUTING.canaries if one.name == asked.model and drawn(one.experiment, by, one.percent)]


def _reaches(world: World, context: PolicyContext, backend: str, model: str) -> bool:
    reach = world.reaches.get(backend, Reach())
    for allowed in (world.entitled.get("regions", ("*",)), context.regions or ("*",)):
        if "*" not in allowed and not (reach.regions and set(reach.regions) <= set(allowed)):
            return False
    return (
        ("*" in world.models or model in world.models)
        and backend in world.entitled.get("backends", (backend,))
        and ("*" in reach.classifications or context.classification in reach.classifications)
    )


def _against(policy: str, rules: Sequence[dict[str, Json]], asked: Request, one: tuple[str, str]) -> list[str]:
    found = []
    for rule in rules:
        if "on" not in rule and _applies(rule, asked, one):
            found += [f"rule:{policy}/{rule['id']}"] if rule["effect"] == "deny" else []
            break
    for tool in asked.tools:
        for rule in rules:
            if "on" in rule and _named(rule["functions"], tool) and _applies(rule, asked, one):
                found += [f"rule_offer:{policy}/{rule['id']}"] if rule["effect"] == "deny" else []
                break
    return found


def _applies(rule: dict[str, Json], asked: Request, one: tuple[str, str]) -> bool:
    backend, model = one
    name = ROUTING.aliases.get(asked.model, asked.model)
    facts: dict[str, list[str]] = {
        "models": [model],
        "backends": [backend],
        "tiers": [name] if name in ROUTING.tiers else [],
        "principals": [asked.caller.principal],
        "roles": list(asked.caller.roles),
        "agents": [asked.agent],
        "classifications": [asked.caller.policy.classification],
        "regions": list(asked.caller.policy.regions),
    }
    if any(not any(_named(rule[fact], value) for value in values) for fact, values in facts.items() if fact in rule):
        return False
    text = " | ".join([*asked.texts, *(asked.tools)])
    if "keywords" in rule or "patterns" in rule:
        said = any(re.search(rf"\b{word}\b", text) for word in rule.get("keywords", ()))
        if not said and not any(re.search(pattern, text) for pattern in rule.get("patterns", ())):
            return False
    if "max_tokens" in rule:
        each = asked.most if asked.most is not None else min(4_096, WRITES_AT_MOST.get(model) or 4_096)
        return asked.path != "/v1/embeddings" and each * asked.n > rule["max_tokens"]
    return True


def _named(names: Sequence[str], value: str) -> bool:
    return any(re.fullmatch(re.escape(name).replace(r"\*", ".*"), value) for name in names)


# What is compared.


class Watched:
    """A ledger that remembers what was asked of it."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._ledger, name)


async def checked(pipeline: Pipeline, caller: AuthContext, call: ChatCall | EmbedCall) -> Verdict | str:
    try:
        return await pipeline.check(caller, call)
    except AgentOSError as error:
        return error.code


async def lived(pipeline: Pipeline, caller: AuthContext, call: ChatCall | EmbedCall) -> tuple[str, Json]:
    """The code it was refused with (empty: it was not), and what is told of the policy."""
    try:
        if isinstance(call, EmbedCall):
            answer = await pipeline.embed(caller, call)
        elif call.stream:
            batches: list[Sequence[Piece]] = []

            async def show(batch: Sequence[Piece]) -> None:
                batches.append(batch)

            await pipeline.stream(caller, call, show)
            answer = list(written_out(batches[-1]))[-1]
        else:
            answer = await pipeline.chat(caller, call)
    except AgentOSError as error:
        return error.code, error.surface.get("policy_outcome")
    return "", answer["policy_outcome"]


def differs(verdict: Verdict | str, code: str, outcome: Json) -> str:
    """How the check and the call disagree; empty if they don't."""
    if isinstance(verdict, str):
        return "" if verdict == code else f"checked {verdict}, lived {code}"
    told = {"decision": verdict.policy_outcome.decision, "reasons": list(verdict.policy_outcome.reasons)}
    if outcome != told and (outcome is None or {**outcome, "reasons": list(outcome["reasons"])} != told):
        return f"checked {told}, lived {outcome}"
    if verdict.refusal is not None:
        return "" if verdict.refusal == code else f"checked {verdict.refusal}, lived {code}"
    if verdict.budget["fits"] != (code not in BUDGET) or code not in {"", *BUDGET}:
        return f"checked fits={verdict.budget['fits']}, lived {code}"
    return ""


async def compared(pipeline_of: Any, *, requests: int, worlds: int) -> tuple[list[str], Counter[str]]:
    """Every difference that is found, and how often the calls ended in which way."""
    found: list[str] = []
    ends: Counter[str] = Counter()
    for number in range(worlds):
        draw = random.Random(SEED * 1_000 + number)  # noqa: S311 - no secret comes of it
        world = a_world(draw)
        async with stack_b(
            Instant("up"),
            Instant("alt"),
            node_rules=world.house,
            rules=world.own,
            pii_modes=world.modes,  # type: ignore[arg-type]  # drawn from the modes
            entitled=world.entitled,
            models=world.models,
            reaches=world.reaches,
            routing=ROUTING,
            limit=world.limit,
        ) as node:
            ledger = Watched(node.deps.budget)
            if world.budget is not None:
                await node.deps.budget.set_budget(PLATFORM, CALLERS["acme"].tenant, world.budget)
            deps = _with(node.deps, ledger)
            pipeline: Pipeline = pipeline_of(deps, Tell(Metrics()))
            for at in range(requests // worlds):
                asked = a_request(draw, world)
                to_check, to_call = asked.calls()
                ledger.asked.clear()
                verdict = await checked(pipeline, asked.caller, to_check)
                wrote = ledger.asked - READS
                code, outcome = await lived(pipeline, asked.caller, to_call)
                ends[code or "answered"] += 1
                difference = differs(verdict, code, outcome) or (f"the check wrote: {wrote}" if wrote else "")
                difference = difference or _against_reading(world, asked, code, outcome)
                if difference:
                    found.append(f"world {number}, request {at} on {asked.path}: {difference}")
            await pipeline.meter.drain()
    return found, ends


def _against_reading(world: World, asked: Request, code: str, outcome: Json) -> str:
    wanted, reasons = expected(world, asked)
    told = {reason for reason in (outcome or {}).get("reasons", ()) if reason.startswith("rule")}
    if reasons != told:
        return f"the rules say {sorted(reasons)}, told {sorted(told)}"
    return f"the rules say {wanted}, lived {code}" if wanted and wanted != code else ""


def _with(deps: Any, ledger: Watched) -> Any:
    from dataclasses import replace as replaced

    return replaced(deps, budget=ledger)


async def test_the_check_says_what_the_call_meets_on_ten_thousand_requests() -> None:
    found, ends = await compared(Pipeline, requests=REQUESTS, worlds=WORLDS)

    assert found == []
    assert sum(ends.values()) == REQUESTS
    # Every way out is taken often: it is not that nothing was tried.
    for end in ("policy_blocked", "tool_not_permitted", "model_not_entitled", "budget_exceeded"):
        assert ends[end] > 100, ends
    assert ends["answered"] > 1_500, ends


class ForgetsFallbacks(Preparation):
    """Calls a backend that the rules deny, as soon as another one is permitted."""

    async def ruled(
        self, auth: Any, tenant: Any, call: Any, members: Any, candidates: tuple[Candidate, ...], *, dear: bool
    ) -> Ruled:
        return await super().ruled(auth, tenant, replace(call, model="m-1"), members, candidates, dear=dear)


class ForgetsRules(Preparation):
    """Decides by the rules where it is asked, and not where it counts."""

    def _permitted(self, ruled: Ruled, trail: Any) -> Ruled:
        if ruled.blocked is not None and ruled.ruling is not None and "rule:house/r0" in ruled.ruling.reasons:
            return Ruled(candidates=tuple(self._router._catalog.served()))
        return super()._permitted(ruled, trail)


@pytest.mark.parametrize("broken", [ForgetsFallbacks, ForgetsRules])
async def test_a_rule_that_is_broken_is_found(broken: type[Preparation]) -> None:
    def pipeline_of(deps: Any, tell: Tell) -> Pipeline:
        pipeline = Pipeline(deps, tell)
        pipeline._prepare.__class__ = broken
        return pipeline

    found, _ = await compared(pipeline_of, requests=1_000, worlds=20)

    assert found != []
