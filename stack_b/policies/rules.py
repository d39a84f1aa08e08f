"""Policies, compiled: which rules deny a request, an answer or a call. Pure.

What depends on the backend, such as a rule on models, is decided for each one that could be asked: one that is denied is
not asked, neither first nor as a fallback. A request is denied where nobody is left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from ports.context import AuthContext
from ports.messages import Json
from ports.policy import Policy, Rule, Stage
from stack_b.backends.catalog import Candidate
from stack_b.policies.calls import Arguments
from stack_b.policies.patterns import Search
from stack_b.policies.strings import offered, strings
from stack_b.policies.text import canonical_texts

STAGES: Final[tuple[Stage, ...]] = ("input", "output", "offer", "call")


class Subject:
    """One request, as rules ask about it. What takes long to find out is found out once, and only if it is asked."""

    def __init__(
        self,
        auth: AuthContext,
        members: Mapping[str, Json],
        *,
        agent: str,
        tier: str,
        may_write: Callable[[Candidate], int],
        texts: tuple[str, ...] | None = None,
    ) -> None:
        """`agent`: which one asks, as the client says. `tier`: of the name that was asked for; empty where it is none.
        `may_write`: how many tokens at most, all choices together. `texts`: `texts_of` it, if that is known."""
        self.auth = auth
        self.tier = tier
        self.agent = agent
        self._members = dict(members)
        self.may_write = may_write
        self._texts = texts
        self._offered: tuple[str, ...] | None = None
        self._found: dict[int, bool] = {}

    @property
    def offered(self) -> tuple[str, ...]:
        if self._offered is None:
            self._offered = offered(self._members)
        return self._offered

    def says(self, search: Search) -> bool:
        known = self._found.get(id(search))
        if known is None:
            if self._texts is None:
                self._texts = texts_of(self._members)
            known = self._found[id(search)] = any(map(search.found, self._texts))
        return known


def texts_of(members: Json) -> tuple[str, ...]:
    """What a request says, in each way to read it."""
    return tuple(dict.fromkeys(reading for text in strings(members) for reading in canonical_texts(text)))


class CompiledRule:
    """One rule at one stage."""

    def __init__(self, policy: str, rule: Rule, stage: Stage) -> None:
        """Raises `InvalidArgument` for a pattern that can't be used."""
        self.reason = f"{_PREFIX[stage]}:{policy}/{rule.id}"
        self.allows = rule.effect == "allow"
        self._rule = rule
        said = bool(rule.keywords or rule.patterns)
        self.search = Search(rule.keywords, rule.patterns, bounded=stage == "output") if said else None
        self._arguments = Arguments(rule.arguments, rule.effect)

    def concerns(self, subject: Subject, candidate: Candidate) -> bool:
        """Whether it is about this caller, and who would serve it."""
        rule, auth = self._rule, subject.auth
        return (
            _any(rule.models, (candidate.card.id,))
            and _any(rule.backends, (candidate.backend.name,))
            and _any(rule.tiers, (subject.tier,))
            and _any(rule.principals, (auth.principal,))
            and _any(rule.roles, auth.roles)
            and _any(rule.agents, (subject.agent,))
            and _any(rule.classifications, (auth.policy.classification,))
            and _any(rule.regions, auth.policy.regions)
        )

    def applies(self, subject: Subject, candidate: Candidate) -> bool:
        """To a request."""
        most = self._rule.max_tokens
        return (
            self.concerns(subject, candidate)
            and (most is None or subject.may_write(candidate) > most)
            and (self.search is None or subject.says(self.search))
        )

    def names(self, function: str) -> bool:
        """Whether it is about this function. A deny is so in any case, and however its letters are written."""
        if _any(self._rule.functions, (function,)):
            return True
        if self.allows:
            return False
        lower = tuple(name.casefold() for name in self._rule.functions)
        return _any(lower, [reading.casefold() for reading in canonical_texts(function)])

    def takes(self, arguments: Json) -> bool:
        return self._arguments.hold(arguments)


class Denial(Struct, frozen=True, kw_only=True):
    """Why something may not be, without a word of what it says."""

    reason: str
    function: str = ""
    """Which of those that were offered or called."""
    offers: bool = False
    """Whether it is about an offer, also of a function without a name."""


class Ruling(Struct, frozen=True, kw_only=True):
    """What policies decide on a request."""

    permitted: tuple[Candidate, ...]
    denials: tuple[Denial, ...] = ()
    """Of the others, each once."""

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(denial.reason for denial in self.denials))


class Rules:
    """Every policy that one tenant's requests meet."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        """By name. Raises `InvalidArgument` for a rule that can't be used."""
        stages: dict[Stage, list[tuple[CompiledRule, ...]]] = {stage: [] for stage in STAGES}
        for name, policy in policies.items():
            for stage in STAGES:
                rules = tuple(CompiledRule(name, rule, stage) for rule in policy.rules if stage in rule.on)
                if rules:
                    stages[stage].append(rules)
        self._input, self._output = tuple(stages["input"]), tuple(stages["output"])
        self._offer, self._call = tuple(stages["offer"]), tuple(stages["call"])
        self.is_empty = not any(stages.values())
        self.on_requests = bool(self._input or self._offer)
        self.reads_requests = any(rule.search for rules in self._input for rule in rules)
        self.on_answers = bool(self._output or self._call)

    def request(self, subject: Subject, candidates: Sequence[Candidate]) -> Ruling:
        """Who of them may be asked this."""
        if not self.on_requests:
            return Ruling(permitted=tuple(candidates))
        permitted: list[Candidate] = []
        denials: list[Denial] = []
        for candidate in candidates:
            against = list(self._against(subject, candidate))
            if against:
                denials += [denial for denial in against if denial not in denials]
            else:
                permitted.append(candidate)
        return Ruling(permitted=tuple(permitted), denials=tuple(denials))

    def searches(self, subject: Subject, candidate: Candidate) -> tuple[tuple[Search, str], ...]:
        """What the texts of an answer must not hold, with the reason for each."""
        found: list[tuple[Search, str]] = []
        for rules in self._output:
            for rule in rules:
                if rule.concerns(subject, candidate):
                    if rule.allows:
                        break
                    assert rule.search is not None, "a rule on answers that denies says what it looks for"
                    found.append((rule.search, rule.reason))
        return tuple(found)

    def call(self, subject: Subject, candidate: Candidate, function: str, arguments: Json) -> Denial | None:
        """Why the model may not call this function so."""
        for rules in self._call:
            for rule in rules:
                if rule.names(function) and rule.concerns(subject, candidate) and rule.takes(arguments):
                    if rule.allows:
                        break
                    return Denial(reason=rule.reason, function=function)
        return None

    def _against(self, subject: Subject, candidate: Candidate) -> Iterator[Denial]:
        for rules in self._input:
            first = next((rule for rule in rules if rule.applies(subject, candidate)), None)
            if first is not None and not first.allows:
                yield Denial(reason=first.reason)
        for rules in self._offer:
            for function in subject.offered:
                about = (rule for rule in rules if rule.names(function) and rule.concerns(subject, candidate))
                first = next(about, None)
                if first is not None and not first.allows:
                    yield Denial(reason=first.reason, function=function, offers=True)


_PREFIX: Final[Mapping[Stage, str]] = {
    "input": "rule", "output": "rule_output", "offer": "rule_offer", "call": "rule_call"
}  # fmt: skip

NOTHING: Final = Rules({})


def _any(names: Sequence[str], said: Sequence[str] | frozenset[str]) -> bool:
    """Whether a condition holds; one that isn't stated does."""
    return not names or any(matches(name, one) for name in names for one in said)


def matches(name: str, text: str) -> bool:
    """Whether `text` is what `name` names. In time linear in them, for each `*`."""
    if "*" not in name:
        return name == text
    first, *middle, last = name.split("*")
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
