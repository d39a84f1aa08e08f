"""Who is asked, in which order, and who is not: by the rules, what is served now and what became of earlier calls.

State is this process's own: every gateway process learns by itself whose backend fails.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self, TypeAlias

import msgspec
from msgspec import Struct

from ports.clock import Clock
from ports.context import AuthContext, PolicyContext
from ports.errors import AgentOSError, Unavailable
from ports.messages import Json
from ports.tenant import ALL, Entitlements
from stack_b.backends.catalog import Candidate, Catalog
from stack_b.backends.reach import Reach
from stack_b.canonical import Preference
from stack_b.members import untaken
from stack_b.routing.breaker import Breaker, State
from stack_b.routing.canary import Watch, drawn
from stack_b.routing.choice import choose, permits, permits_backend, permits_tier
from stack_b.routing.rules import Canary, RoutingRules

Kind: TypeAlias = Literal["chat", "embed"]

LATENCY_WEIGHT: Final = 0.2
"""Of a new measurement in the moving average."""
MAX_REMEMBERED: Final = 4_096
"""Orders of candidates."""
_UNPRICED: Final = 10**30
_UNKNOWN: Final = Reach()
_PLAIN: Final = PolicyContext()
_KINDS: Final[tuple[Kind, ...]] = ("chat", "embed")

logger = logging.getLogger("agentos.gateway")


class Asked(Struct, frozen=True, kw_only=True, gc=False):
    """What a request says that its route depends on."""

    name: str
    """`model`, as the client said it."""
    kind: Kind
    preference: Preference = "quality"
    agent: str = ""
    """What the client says it is calling for, see `agent_of`; a canary then draws agents, and not those who call."""
    conversation: str = ""
    """Equal for the turns of one conversation, see `conversation_of`; empty where it has none."""
    extra: tuple[str, ...] = ()
    """What of it not every backend may be sent."""


class _Reasons(NamedTuple):
    """All that an order depends on which no call changes, beside what is served and by which rules."""

    name: str
    kind: Kind
    entitled: tuple[tuple[str, ...], ...]
    policy: PolicyContext


class Router:
    def __init__(
        self, catalog: Catalog, rules: RoutingRules, clock: Clock, *, reaches: Mapping[str, Reach] | None = None
    ) -> None:
        """`reaches`: by backend; of one that isn't named, nothing is known."""
        self._catalog = catalog
        self._reaches = reaches or {}
        self.monotonic = clock.monotonic
        self._breakers: dict[str, Breaker] = {}
        self._latency: dict[tuple[str, str], float] = {}
        self._heard: dict[str, float] = {}
        self._rules = rules
        self.spreads = bool(rules.spread)
        """Whether it matters which conversation a request is of."""
        self._is_settled = not rules.canaries and not rules.spread
        self._watches: dict[str, Watch] = {}
        self._remembered: dict[_Reasons, tuple[Candidate, ...]] = {}
        self._last: dict[tuple[str, str, Kind], tuple[Entitlements, PolicyContext, tuple[Candidate, ...]]] = {}
        """By tenant and what it asks for: of what it was entitled to then."""
        self._remembered_for: tuple[Candidate, ...] = ()

    def follow(self, rules: RoutingRules, *, reaches: Mapping[str, Reach]) -> None:
        """From the next request on. A canary that was rolled back stays so, unless it was changed."""
        self._reaches = reaches
        kept = {canary.experiment for canary in rules.canaries} & {
            canary.experiment for canary in self._rules.canaries if canary in rules.canaries
        }
        self._watches = {experiment: watch for experiment, watch in self._watches.items() if experiment in kept}
        self._rules = rules
        self.spreads, self._is_settled = bool(rules.spread), not rules.canaries and not rules.spread
        self._remembered, self._last = {}, {}

    def candidates(
        self,
        auth: AuthContext,
        asked: Asked,
        entitlements: Entitlements,
        priced: Callable[[Candidate], Candidate] | None = None,
    ) -> tuple[Candidate, ...]:
        """Who may serve it, best first, at the price that `priced` gives it. Empty: nobody may or can. Changes nothing."""
        if self._is_settled and asked.preference == "quality":
            # Then it depends on nothing that a call changes.
            order = self._settled_order(auth, asked, entitlements)
            return order if priced is None else tuple(map(priced, order))
        if not permits_tier(entitlements, self._rules.tier(asked.name)):
            return ()
        priced = priced or _as_it_is
        served = self._within(auth, entitlements)
        models = self._rules.models(asked.name)
        canary = self._canary(auth, asked, entitlements)
        if canary is not None:
            # Where the canary can't, the usual ones do.
            models = (canary.model, *(model for model in models if model != canary.model))
        found: list[Candidate] = []
        for model in models:
            equals = tuple(map(priced, choose(model, asked.kind, entitlements, served)))
            found += self._spread(auth, asked, equals) if model in self._rules.spread else equals
        if canary is None:
            return tuple(self._preferred(asked.preference, found))
        first = [one for one in found if one.card.id == canary.model]
        return (*first, *self._preferred(asked.preference, [one for one in found if one not in first]))

    def taking(self, extra: tuple[str, ...], candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        """Those that may be sent all of `extra`. Raises `InvalidArgument` where nobody may."""
        able = tuple(one for one in candidates if self._passes(one).issuperset(extra))
        if not able:
            refused = [name for name in extra if not any(name in self._passes(one) for one in candidates)] or extra
            raise untaken(refused[0])
        return able

    def _passes(self, candidate: Candidate) -> frozenset[str]:
        return self._reaches.get(candidate.backend.name, _UNKNOWN).passes

    def knows(self, name: str) -> bool:
        """Whether it is the name of a model, an alias or a tier of this node."""
        if name in self._rules.aliases or name in self._rules.tiers:
            return True
        return any(one.card.id == name for one in self._catalog.served())

    def tier(self, name: str) -> str:
        """The tier that a client asks for by `name`; empty where it is none."""
        return self._rules.tier(name)

    def target(self, name: str) -> str:
        """The tier or model that a client asks for by `name`."""
        return self._rules.target(name)

    def _settled_order(self, auth: AuthContext, asked: Asked, entitlements: Entitlements) -> tuple[Candidate, ...]:
        served = self._catalog.served()
        if self._remembered_for is not served:
            self._remembered_for, self._remembered, self._last = served, {}, {}
        who = (auth.tenant, asked.name, asked.kind)
        last = self._last.get(who)
        if last is not None and last[0] is entitlements and last[1] is auth.policy:
            # Nothing is compared where these are the very objects of the request before.
            return last[2]
        found = self._order(auth, asked, entitlements)
        if found and (last is not None or len(self._last) < MAX_REMEMBERED):
            self._last[who] = (entitlements, auth.policy, found)
        return found

    def _order(self, auth: AuthContext, asked: Asked, entitlements: Entitlements) -> tuple[Candidate, ...]:
        key = _Reasons(
            asked.name,
            asked.kind,
            (entitlements.models, entitlements.tiers, entitlements.backends, entitlements.regions),
            auth.policy,
        )
        found = self._remembered.get(key)
        if found is None:
            found = ()
            if permits_tier(entitlements, self._rules.tier(asked.name)):
                within = self._within(auth, entitlements)
                models = self._rules.models(asked.name)
                found = tuple(one for model in models for one in choose(model, asked.kind, entitlements, within))
            if found and len(self._remembered) < MAX_REMEMBERED:
                self._remembered[key] = found
        return found

    def named(self, auth: AuthContext, entitlements: Entitlements) -> tuple[Candidate, ...]:
        """By every name that leads somewhere, sorted: who would be asked first, under that name."""
        served = self._catalog.served()
        names = {one.card.id for one in served} | self._rules.aliases.keys() | self._rules.tiers.keys()
        found: list[Candidate] = []
        for name in sorted(names):
            for kind in _KINDS:
                if candidates := self.candidates(auth, Asked(name=name, kind=kind), entitlements):
                    card = msgspec.structs.replace(candidates[0].card, id=name)
                    found.append(Candidate(candidates[0].backend, card))
                    break
        return tuple(found)

    def tries(self, candidates: tuple[Candidate, ...]) -> Iterator[Candidate]:
        """Those whose breaker admits a call at the moment their turn comes. Of none at all, `all_failing` says why."""
        # No generator, which would be ended by an exception with nearly every request: after the first.
        return filter(self._admits, candidates)

    def is_closed(self, candidate: Candidate) -> bool:
        """Whether calls of it go well, so that one more is no trial."""
        breaker = self._breakers.get(candidate.backend.name)
        return breaker is None or breaker.closed_until is None

    def _admits(self, candidate: Candidate) -> bool:
        breaker = self._breakers.get(candidate.backend.name)
        return breaker is None or breaker.admits()

    def all_failing(self, candidates: tuple[Candidate, ...]) -> Unavailable:
        """None of them is admitted; `retry_after` says when one may be."""
        wait = min(self.breaker_of(candidate.backend.name).retry_after_s for candidate in candidates)
        return Unavailable(
            "every backend of this model has failed lately; try again later",
            code="upstream_error",
            retry_after=timedelta(seconds=max(1.0, wait)),
        )

    def attempt(self, auth: AuthContext, asked: Asked, candidate: Candidate) -> "Attempting":
        """A block around one call of a backend: what becomes of it is what the next requests go by.

        A client that leaves, or its own deadline, is nobody's failure. Neither is a refusal of the request itself.
        """

        return Attempting(
            _router=self,
            auth=auth,
            asked=asked,
            candidate=candidate,
            breaker=self.breaker_of(candidate.backend.name),
            began=self.monotonic(),
        )

    def left(self, candidate: Candidate) -> None:
        """It was this one's turn, and it was not called."""
        self.breaker_of(candidate.backend.name).left()

    def states(self) -> dict[str, State]:
        """By backend, of those that were called."""
        return {name: breaker.state for name, breaker in self._breakers.items()}

    def heard(self, backend: str) -> float | None:
        """When a call of it last went well, by the monotonic clock."""
        return self._heard.get(backend)

    def probed(self, backend: str, *, well: bool, pause: float) -> None:
        """It was asked how it is. Unwell, it is left alone for `pause` seconds, or until it is found to be well."""
        breaker = self.breaker_of(backend)
        before = breaker.state
        if well:
            breaker.reachable()
        else:
            breaker.unreachable(pause)
        if breaker.state != before:
            logger.warning("backend.breaker", extra={"backend": backend, "state": breaker.state})

    def ended(self, attempt: "Attempting", error: BaseException | None, now: float) -> None:
        """A call of `attempt` is over."""
        candidate, breaker = attempt.candidate, attempt.breaker
        if error is not None and not isinstance(error, AgentOSError):
            breaker.left()
            return
        # What is not `upstream_…` is ours, such as having no connection left.
        failed = error is not None and isinstance(error, Unavailable) and error.code.startswith("upstream_")
        self._judge(breaker, attempt.auth, attempt.asked, candidate, failed=failed)
        if error is None:
            seconds = (now if attempt.first is None else attempt.first) - attempt.began
            name = candidate.backend.name
            self._heard[name] = now
            key = (name, candidate.card.id)
            before = self._latency.get(key, seconds)
            self._latency[key] = before + LATENCY_WEIGHT * (seconds - before)

    def _judge(self, breaker: Breaker, auth: AuthContext, asked: Asked, candidate: Candidate, *, failed: bool) -> None:
        if not failed and breaker.closed_until is None:
            # One that was closed stays so when a call goes well, as nearly all do.
            breaker.succeeded()
        elif self._turned(breaker, failed=failed):
            logger.warning("backend.breaker", extra={"backend": candidate.backend.name, "state": breaker.state})
        canary = self._drawn(auth, asked) if self._rules.canaries else None
        if canary is not None and candidate.card.id == canary.model and self._watch(canary).ended(failed=failed):
            logger.error("canary.rolled_back", extra={"experiment": canary.experiment, "model": canary.model})

    def _turned(self, breaker: Breaker, *, failed: bool) -> bool:
        """Whether it is in another state now."""
        before = breaker.state
        if failed:
            breaker.failed()
        else:
            breaker.succeeded()
        return breaker.state != before

    def breaker_of(self, name: str) -> Breaker:
        breaker = self._breakers.get(name)
        if breaker is None:
            breaker = self._breakers[name] = Breaker(self.monotonic)
        return breaker

    def _watch(self, canary: Canary) -> Watch:
        return self._watches.setdefault(canary.experiment, Watch(canary.max_error_rate))

    def _drawn(self, auth: AuthContext, asked: Asked) -> Canary | None:
        caller = (auth.tenant, "agent", asked.agent) if asked.agent else (auth.tenant, auth.principal)
        for canary in self._rules.canaries:
            if canary.name == asked.name and drawn(canary.experiment, caller, canary.percent):
                return canary
        return None

    def _canary(self, auth: AuthContext, asked: Asked, entitlements: Entitlements) -> Canary | None:
        canary = self._drawn(auth, asked)
        if canary is None or self._watch(canary).rolled_back or not permits(entitlements, canary.model):
            return None
        return canary

    def _within(self, auth: AuthContext, entitlements: Entitlements) -> tuple[Candidate, ...]:
        """Those whose backends may see what this caller sends: the ones that fallbacks and canaries are chosen from too."""
        served = self._catalog.served()
        if not self._reaches and entitlements.backends == ALL == entitlements.regions and auth.policy == _PLAIN:
            return served
        regions = frozenset(entitlements.regions)
        return tuple(
            one
            for one in served
            if permits_backend(entitlements, one.backend.name)
            and self._reaches.get(one.backend.name, _UNKNOWN).may_see(auth.policy, regions)
        )

    def _preferred(self, preference: Preference, found: list[Candidate]) -> list[Candidate]:
        match preference:
            case "quality":
                return found
            case "cost":
                return sorted(found, key=_price)
            case "latency":
                # One that was never measured comes first, or it never would be.
                return sorted(found, key=lambda one: self._latency.get((one.backend.name, one.card.id), 0.0))

    def _spread(self, auth: AuthContext, asked: Asked, equals: tuple[Candidate, ...]) -> list[Candidate]:
        """In an order that is the conversation's own (rendezvous hashing): when a backend leaves, only its own move."""

        def weight(candidate: Candidate) -> bytes:
            place = (candidate.backend.name, auth.tenant, auth.principal, asked.conversation)
            return hashlib.sha256(msgspec.json.encode(place)).digest()

        return sorted(equals, key=weight)


class Attempting(Struct, kw_only=True, eq=False):
    """A call under way, and how long it took to its first content."""

    _router: Router
    auth: AuthContext
    asked: Asked
    candidate: Candidate
    breaker: Breaker
    began: float
    first: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._router.ended(self, error, self._router.monotonic())

    def answered(self) -> None:
        """Its first content is there, or all of it."""
        if self.first is None:
            self.first = self._router.monotonic()
            if self.breaker.state == "half_open":
                # Others need not wait until this answer has ended.
                self.breaker.succeeded()


def conversation_of(members: dict[str, Json]) -> str:
    """What stays the same from turn to turn and is cached by a backend: how the messages begin."""
    messages = members.get("messages")
    if not isinstance(messages, list) or not messages:
        return ""
    return hashlib.sha256(msgspec.json.encode(messages[:2])).hexdigest()


def agent_of(members: dict[str, Json]) -> str:
    """The agent that a client names in `metadata`."""
    told = members.get("metadata")
    agent = told.get("agent_id") if isinstance(told, dict) else None
    return agent if isinstance(agent, str) else ""


def _as_it_is(candidate: Candidate) -> Candidate:
    return candidate


def _price(candidate: Candidate) -> int:
    price = candidate.card.price
    return _UNPRICED if price is None else price.prompt + price.completion
