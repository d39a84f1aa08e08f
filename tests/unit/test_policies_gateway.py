"""Entitlements, reaches and policies where routes are chosen, fallbacks and canaries included; and how fast they hold."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from msgspec.structs import replace

from conformance.clock import ManualClock
from ports.context import PolicyContext
from ports.ids import TenantId
from ports.policy import Policy, Rule
from ports.tenant import Entitlements, Tenant
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard
from stack_b.backends.reach import Reach
from stack_b.backends.settings import BackendSettings
from stack_b.configuration import parse_configuration
from stack_b.following import reaches_of
from stack_b.http.completions import SURFACES
from stack_b.limits import Limits
from stack_b.policies.desk import Policies
from stack_b.policies.rules import Rules
from stack_b.replay import digest_of
from stack_b.routing.rules import Canary, RoutingRules
from tests.support.in_process import in_process
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_b import CALLERS, PLATFORM, StackB, Tokens, policy_of, stack_b

pytestmark = [pytest.mark.anyio]

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
DOWN: Final = Whole({"error": {"message": "down"}}, status=503)
EU: Final = Reach(regions=frozenset({"eu"}), classifications=frozenset({"*"}))
US: Final = Reach(regions=frozenset({"us"}), classifications=frozenset({"*"}))
TIERED: Final = RoutingRules(aliases={"default": "large"}, tiers={"large": ("m-1", "m-2"), "small": ("m-2",)})
_KINDS: Final = (
    "allowed_tools",
    "functionDeclarations",
    "googleSearch",
    "google_search",
    "codeExecution",
    "web_search",
)
_TAKES: Final = Reach(passes=frozenset(f"tools.{kind}" for kind in _KINDS))
_TAKE_ALL: Final = {"one": _TAKES, "two": _TAKES}
CANARY: Final = RoutingRules(canaries=(Canary(experiment="x", name="m-1", model="m-2", percent=100),))


class Two:
    """Two backends, `one` with m-1 and `two` with m-1 and m-2; the first of them is down, if so wished."""

    def __init__(self, *, down: bool = True) -> None:
        self.one = ScriptedUpstream([DOWN] if down else [completion("one")])
        self.two = ScriptedUpstream([completion("two")])

    @property
    def backends(self) -> tuple[OpenAiCompatible, OpenAiCompatible]:
        return self._backend(self.one, "one", "m-1"), self._backend(self.two, "two", "m-1", "m-2")

    @property
    def heard(self) -> tuple[int, int]:
        return len(self.one.requests), len(self.two.requests)

    def _backend(self, upstream: ScriptedUpstream, name: str, *models: str) -> OpenAiCompatible:
        cards = tuple(ModelCard(id=model, upstream=model) for model in models)
        return OpenAiCompatible(name=name, base_url=f"http://{name}/v1", dial_by=in_process(upstream), models=cards)


def caller(**context: Any) -> Tokens:
    return Tokens({"acme": replace(CALLERS["acme"], policy=PolicyContext(**context))})


async def ends(node: StackB, model: str = "m-1") -> tuple[int, str]:
    answer = await node.chat(model=model)
    return answer.status_code, answer.json().get("error", {}).get("code", "")


DENIES_TWO: Final = [{"id": "no", "effect": "deny", "backends": ["two"]}]
DENIES_M_2: Final = [{"id": "no", "effect": "deny", "models": ["m-2"]}]
KEPT_OUT: Final[dict[str, dict[str, Any]]] = {
    "entitled to one backend": {"entitled": {"backends": ("one",)}},
    "entitled to a region": {"entitled": {"regions": ("eu",)}, "reaches": {"one": EU, "two": US}},
    "entitled to a region, one undeclared": {"entitled": {"regions": ("eu",)}, "reaches": {"one": EU}},
    "a token bound to a region": {"verifier": caller(regions=("eu",)), "reaches": {"one": EU, "two": US}},
    "a token bound to a region, one undeclared": {"verifier": caller(regions=("eu",)), "reaches": {"one": EU}},
    "a secret": {"verifier": caller(classification="secret"), "reaches": {"one": EU}},
    "a policy of the node": {"node_rules": DENIES_TWO},
    "a policy of the tenant": {"rules": DENIES_TWO},
}
"""Why `two` may not see a request."""


@pytest.mark.parametrize("why", sorted(KEPT_OUT))
class TestABackendThatMayNotSeeIt:
    async def test_is_no_fallback(self, why: str) -> None:
        two = Two()
        async with stack_b(*two.backends, **KEPT_OUT[why]) as node:
            assert await ends(node) == (502, "upstream_error")
        assert two.heard == (1, 0)

    async def test_is_no_fallback_of_a_stream(self, why: str) -> None:
        two = Two()
        async with stack_b(*two.backends, **KEPT_OUT[why]) as node:
            answer = await node.chat(model="m-1", stream=True)
        assert answer.status_code == 502
        assert two.heard == (1, 0)

    async def test_is_no_fallback_within_a_tier(self, why: str) -> None:
        two = Two()
        async with stack_b(*two.backends, routing=TIERED, **KEPT_OUT[why]) as node:
            assert await ends(node, "default") == (502, "upstream_error")
        assert two.heard == (1, 0)

    async def test_is_no_canary(self, why: str) -> None:
        two = Two(down=False)
        async with stack_b(*two.backends, routing=CANARY, **KEPT_OUT[why]) as node:
            assert await ends(node) == (200, "")
        assert two.heard == (1, 0)

    async def test_is_not_reached_by_its_own_model(self, why: str) -> None:
        two = Two()
        async with stack_b(*two.backends, **KEPT_OUT[why]) as node:
            status, code = await ends(node, "m-2")
        assert (status, code) in {(403, "model_not_entitled"), (403, "policy_blocked")}
        assert two.heard == (0, 0)


class TestAModel:
    async def test_that_a_policy_denies_is_no_fallback_and_no_canary(self) -> None:
        two = Two()
        two.two.script[:] = [DOWN]
        async with stack_b(*two.backends, routing=TIERED, rules=DENIES_M_2) as node:
            await node.chat(model="default")
        assert [request.body["model"] for request in (*two.one.requests, *two.two.requests)] == ["m-1", "m-1"]
        two = Two(down=False)
        async with stack_b(*two.backends, routing=CANARY, rules=DENIES_M_2) as node:
            assert await ends(node) == (200, "")
        assert two.heard == (1, 0)

    async def test_that_was_asked_for_is_never_another_one_in_secret(self) -> None:
        """Hidden substitution: a model's own name leads to that model only, and who answered is always told."""
        two = Two()
        two.two.script[:] = [DOWN]
        async with stack_b(*two.backends) as node:
            assert await ends(node, "m-1") == (502, "upstream_error")
            assert all(request.body["model"] == "m-1" for request in two.two.requests)
        two = Two()
        async with stack_b(*two.backends, routing=TIERED) as node:
            for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
                said = {"input": "hi"} if "responses" in path else {"messages": [{"role": "user", "content": "hi"}]}
                answer = await node.post(path, {"model": "default", "max_tokens": 9, **said} if "resp" not in path
                                         else {"model": "default", **said})  # fmt: skip
                route = answer.json()["route"]
                assert (route["backend"], route["model"]) == ("two", "m-1")


class TestATier:
    async def test_that_is_not_the_tenants_can_not_be_asked_for_by_its_name_or_an_alias(self) -> None:
        two = Two(down=False)
        async with stack_b(*two.backends, routing=TIERED, entitled={"tiers": ("small",)}) as node:
            assert await ends(node, "large") == (403, "model_not_entitled")
            assert await ends(node, "default") == (403, "model_not_entitled")
            assert await ends(node, "small") == (200, "")
            assert await ends(node, "m-1") == (200, "")
            listed = [model["id"] for model in (await node.get("/v1/models")).json()["data"]]

        assert listed == ["m-1", "m-2", "small"]


async def test_a_secret_goes_nowhere_that_does_not_say_it_may() -> None:
    for reach, status in ((Reach(), 403), (replace(Reach(), classifications=frozenset({"secret"})), 200)):
        two = Two(down=False)
        async with stack_b(
            *two.backends, verifier=caller(classification="secret"), reaches={"one": reach, "two": reach}
        ) as node:
            assert (await ends(node))[0] == status


async def test_every_region_of_a_backend_must_be_permitted() -> None:
    both = Reach(regions=frozenset({"eu", "us"}))
    for regions, status in ((("eu",), 403), (("eu", "us"), 200), ((), 200)):
        two = Two(down=False)
        async with stack_b(*two.backends, verifier=caller(regions=regions), reaches={"one": both, "two": both}) as node:
            assert (await ends(node))[0] == status, regions


async def test_where_an_embedding_may_go_is_decided_as_for_a_chat() -> None:
    vectors = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
    upstream = ScriptedUpstream([Whole(vectors)])
    card = ModelCard(id="m-embed", upstream="m-embed", chat=False, embed=True)
    for settings in (KEPT_OUT["a secret"], {"rules": [{"id": "no", "effect": "deny", "keywords": ["heron"]}]}):
        backend = OpenAiCompatible(name="two", base_url="http://two/v1", dial_by=in_process(upstream), models=(card,))
        async with stack_b(backend, **settings) as node:
            answer = await node.post("/v1/embeddings", {"model": "m-embed", "input": ["fine", "a heron"]})
            assert answer.status_code == 403
    assert upstream.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rule_on_answers_goes_by_who_it_was_served_by(*, stream: bool) -> None:
    rules = [
        {"id": f"no-{backend}", "effect": "deny", "on": ["output"], "backends": [backend], "keywords": [word]}
        for backend, word in (("one", "alpha"), ("two", "beta"))
    ]
    for said, denied in (("alpha", False), ("beta", True)):
        two = Two()
        told = Events([delta(content=said), delta("stop"), {"id": "up", "choices": [], "usage": usage(7, 5)}])
        two.two.script[:] = [told if stream else completion(said)]
        async with stack_b(*two.backends, rules=rules) as node:
            answer = await node.chat(model="m-1", stream=stream)
        assert answer.status_code == 200
        assert ("content_filter" in answer.text) is denied
        assert (said in answer.text) is not denied


async def test_a_tool_that_is_refused_is_named_in_so_many_words_at_most() -> None:
    no_tools = [{"id": "no", "effect": "deny", "on": ["offer"], "functions": ["*"]}]
    two = Two(down=False)
    async with stack_b(*two.backends, rules=no_tools) as node:
        tools = [{"type": "function", "function": {"name": f"{number}{'x' * 5_000}"}} for number in range(20)]
        long = await node.chat(model="m-1", tools=tools)
        odd = await node.chat(model="m-1", tools=[{"type": "function"}])
        counted = node.deps.metrics.render().decode()

    assert (long.status_code, long.json()["error"]["code"]) == (403, "tool_not_permitted")
    assert len(long.content) < 4_000
    assert long.json()["error"]["details"]["reasons"] == ["rule_offer:tenant/no"]
    assert (odd.status_code, odd.json()["error"]["code"]) == (403, "tool_not_permitted")
    assert 'agentos_policy_blocks_total{reason="tools"} 2.0' in counted


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "fine", "functions": [{"name": "pay_bill"}]}},
        {"type": "custom", "custom": {"name": "fine", "tools": [{"type": "function", "name": "pay_bill"}]}},
        {"functionDeclarations": [{"name": "pay_bill"}]},
        {"type": "function", "name": "fine", "allowed_tools": ["pay_bill"]},
    ],
    ids=["functions", "tools", "declarations", "names"],
)
async def test_a_function_inside_of_a_tool_is_offered_too(tool: Any) -> None:
    no_pay = [{"id": "no", "effect": "deny", "on": ["offer"], "functions": ["pay_*"]}]
    two = Two(down=False)
    async with stack_b(*two.backends, rules=no_pay, reaches=_TAKE_ALL) as node:
        answer = await node.chat(model="m-1", tools=[tool])

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tool_not_permitted")
    assert two.heard == (0, 0)


@pytest.mark.parametrize(
    ("tools", "kind"),
    [
        ([{"googleSearch": {}}], "googleSearch"),
        ([{"google_search": {}}], "google_search"),
        ([{"type": "function", "function": {"name": "fine"}}, {"codeExecution": {}}], "codeExecution"),
        ([{"type": "function", "function": {"name": "fine"}, "web_search": {}}], "web_search"),
    ],
)
async def test_a_providers_tool_without_a_type_is_denied_by_its_name(tools: list[Any], kind: str) -> None:
    no_kind = [{"id": "no", "effect": "deny", "on": ["offer"], "functions": [kind]}]
    two = Two(down=False)
    async with stack_b(*two.backends, rules=no_kind, reaches=_TAKE_ALL) as node:
        answer = await node.chat(model="m-1", tools=tools)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["details"]["tools"]) == (403, "tool_not_permitted", [kind])
    assert two.heard == (0, 0)


def test_what_an_agent_asks_is_not_what_another_one_asks() -> None:
    """Rules and budgets go by it: so nobody joins, or is answered with, the other's call."""
    asked = [
        SURFACES["/v1/responses"]({"model": "m-1", "input": "hi"} | more, Limits())[0]
        for more in ({}, {"metadata": {"agent_id": "agt_a"}}, {"metadata": {"agent_id": "agt_b"}})
    ]

    assert len({digest_of(call) for call in asked}) == 3


# How fast.


async def test_a_tenants_policy_holds_within_five_seconds_and_ends_within_five() -> None:
    clock, two = ManualClock(), Two(down=False)
    denies, spares = (policy_of([{"id": "no", "effect": "deny"} | more]) for more in ({}, {"keywords": ["otter"]}))
    async with stack_b(*two.backends, clock=clock) as node:
        assert await ends(node) == (200, "")
        refused, passes = (403, "policy_blocked"), (200, "")
        for policy, expected in ((denies, refused), (spares, passes), (denies, refused), (Policy(), passes)):
            await node.deps.tenant.set_entitlements(PLATFORM, CALLERS["acme"].tenant, Entitlements(policy=policy))
            await clock.advance(timedelta(seconds=5))
            assert await ends(node) == expected


async def test_a_tenants_entitlements_hold_within_five_seconds() -> None:
    clock, two = ManualClock(), Two(down=False)
    async with stack_b(*two.backends, clock=clock) as node:
        assert await ends(node) == (200, "")
        changed = Entitlements(backends=("none",))
        await node.deps.tenant.set_entitlements(PLATFORM, CALLERS["acme"].tenant, changed)
        await clock.advance(timedelta(seconds=5))
        assert await ends(node) == (403, "model_not_entitled")


async def test_what_the_node_says_holds_from_the_next_request_on() -> None:
    two = Two(down=False)
    async with stack_b(*two.backends, rules=[{"id": "own", "effect": "deny", "keywords": ["otter"]}]) as node:
        assert await ends(node) == (200, "")
        node.deps.policies.follow({"house": policy_of([{"id": "no", "effect": "deny"}])})
        assert await ends(node) == (403, "policy_blocked")
        node.deps.policies.follow({})
        assert await ends(node) == (200, "")


async def test_a_tenants_policy_that_can_not_be_used_lets_nothing_through() -> None:
    """It came by another way than the command: what it was to deny must not pass."""
    two = Two(down=False)
    broken = Policy(rules=(Rule(id="no", effect="deny", patterns=("(",)),))
    async with stack_b(*two.backends, entitled={}) as node:
        await node.deps.tenant.set_entitlements(PLATFORM, CALLERS["acme"].tenant, Entitlements(policy=broken))
        assert await ends(node) == (503, "unavailable")
        assert await ends(node) == (503, "unavailable")
        globex = await node.chat(who="globex", model="m-1")

    assert globex.status_code == 200
    assert two.heard == (1, 0)


async def test_a_policy_is_compiled_once_for_each_version_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    usual = Policies._compiled

    def counted(self: Policies, tenant: Tenant) -> Rules | None:
        compiled.append(tenant.id)
        return usual(self, tenant)

    monkeypatch.setattr(Policies, "_compiled", counted)
    clock, two = ManualClock(), Two(down=False)
    async with stack_b(
        *two.backends, clock=clock, rules=[{"id": "no", "effect": "deny", "keywords": ["otter"]}]
    ) as node:
        for _ in range(3):
            await node.chat(model="m-1")
            await clock.advance(timedelta(seconds=5))

    assert compiled == ["tnt_acme"]


async def test_without_policies_nothing_is_decided() -> None:
    acme = Tenant(id=TenantId("tnt_acme"), name="", status="active", entitlements=Entitlements(), created_at=EPOCH)
    rules = Policies().of(acme)

    assert rules.is_empty
    assert not rules.on_answers


# The file.


def test_a_file_says_policies_and_what_backends_may_see() -> None:
    said = {
        "backends": [
            {"name": "one", "base_url": "http://one/v1", "regions": ["eu"], "classifications": ["*"]},
            {"name": "two", "base_url": "http://two/v1"},
        ],
        "policies": {"house": {"rules": [{"id": "no", "effect": "deny", "keywords": ["otter"]}]}},
    }
    found = parse_configuration(json.dumps(said))

    assert reaches_of(found.backends) == {"one": EU}
    assert BackendSettings(name="two").reach == Reach()
    assert [rule.id for rule in found.policies["house"].rules] == ["no"]
    assert found.version != parse_configuration(json.dumps(said).replace("otter", "heron")).version
