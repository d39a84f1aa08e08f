"""The policy decision: what is in a request that its backend may not see. One function, also for `/v1/policy/check`.

Personal data and secrets are replaced by placeholders before a backend sees them, unless the tenant's rules say otherwise.
Secrets are redacted, not blocked, by default: a key pasted by accident shouldn't end the conversation, and redacted it
can't leak.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import PermissionDenied
from ports.messages import Json
from ports.model import PolicyOutcome
from ports.pii import PiiDetector, Span
from stack_b.canonical import NOBODY_KNOWN, About
from stack_b.redaction.cache import Remembering
from stack_b.redaction.findings import Finding, findings_of
from stack_b.redaction.nested import StandIn, masked, payload_of
from stack_b.redaction.parts import is_cut, joined, texts_of
from stack_b.redaction.placeholders import Placeholders
from stack_b.redaction.rules import PiiRules
from stack_b.redaction.spans import PROTOCOL, SHORTEST, Texts, placeholder, rewritten

REDACT: Final = PiiRules()
ALLOWED: Final = PolicyOutcome(decision="allowed")
NOTHING_UNDONE: Final = Placeholders(REDACT)
"""Of all requests in which nothing was found: nobody adds to it."""


class Decision(Struct, frozen=True, kw_only=True):
    outcome: PolicyOutcome
    findings: tuple[Finding, ...]
    value: Json
    """What may be sent: the value given, redacted."""
    placeholders: Placeholders
    """Those that the answer undoes."""


async def decide(
    detector: PiiDetector,
    auth: AuthContext,
    value: Json,
    rules: PiiRules = REDACT,
    texts: Iterable[str] | None = None,
) -> Decision:
    """Decide on every text in `value`. `texts`: those, where there is nothing else in it.

    Raises:
        Unavailable: the detector can't tell. Then nothing is sent (fail closed).
    """
    if texts is not None and await clear(detector, auth, texts, rules):
        return Decision(outcome=ALLOWED, findings=(), value=value, placeholders=NOTHING_UNDONE)
    undone = Placeholders(rules)

    def stands(kind: str, found: str, number: bool) -> str:
        return undone.of(kind, found, number=number) if rules.mode(kind) == "reversible" else placeholder(kind)

    async def spans_in(text: str) -> list[Span]:
        return [span for span in await detector.detect(auth, text) if rules.mode(span.kind) != "allow"]

    looked_at = Texts(value)
    cut: set[int] = set()
    for items in looked_at.parted:
        said = texts_of(items)
        if is_cut(await spans_in("".join(said)), said):
            cut.add(id(items))
    if cut:
        value = joined(value, cut)
        looked_at = Texts(value)
    stand_in = StandIn(stands)
    replacements = {text: await masked(text, spans_in, stand_in) for text in dict.fromkeys(looked_at.found)}
    numbers: dict[str, str] = {}
    for number in dict.fromkeys(looked_at.numbers):
        for span in (await spans_in(number))[:1]:
            numbers[number] = stand_in.number(span.kind, number)
    found = stand_in.kinds
    if not found:
        return Decision(outcome=ALLOWED, findings=(), value=value, placeholders=undone)
    kinds = Counter(found)
    blocked = sorted(kind for kind in kinds if rules.mode(kind) == "block")
    return Decision(
        outcome=PolicyOutcome(
            decision="blocked" if blocked else "redacted",
            reasons=tuple(f"pii:{kind}" for kind in blocked or sorted(kinds)),
        ),
        findings=findings_of(kinds),
        value=rewritten(value, replacements, numbers),
        placeholders=undone,
    )


async def clear(detector: PiiDetector, auth: AuthContext, texts: Iterable[str], rules: PiiRules) -> bool:
    """Whether there is nothing to take out of `texts`, as mostly; those with other texts in them are not asked about."""
    for text in texts:
        if len(text) < SHORTEST or text in PROTOCOL:
            continue
        if payload_of(text) is not None:
            return False
        for span in await detector.detect(auth, text):
            if rules.mode(span.kind) != "allow":
                return False
    return True


def clear_at_hand(detector: Remembering, auth: AuthContext, texts: Sequence[str], rules: PiiRules) -> bool:
    """Whether nothing is to be taken out of `texts`, as far as nothing has to be waited for."""
    # What was said last is what is new.
    for text in reversed(texts):
        if len(text) < SHORTEST or text in PROTOCOL:
            continue
        spans = None if payload_of(text) is not None else detector.at_hand(auth, text)
        if spans is None or (spans and not all(rules.mode(span.kind) == "allow" for span in spans)):
            return False
    return True


def enforce(decision: Decision) -> None:
    """Raise `PermissionDenied` (`policy_blocked`) if the request may not be made. It names classes, not findings."""
    if decision.outcome.decision == "blocked":
        kinds = ", ".join(reason.removeprefix("pii:") for reason in decision.outcome.reasons)
        raise PermissionDenied(
            f"the request holds what this tenant may not send to a model: {kinds}; take it out and ask again",
            code="policy_blocked",
            details={"reasons": list(decision.outcome.reasons)},
        )


async def named(detector: PiiDetector, auth: AuthContext, about: About, rules: PiiRules) -> About:
    """The names a request is counted by as they may be written down: usage events keep them."""
    if about == NOBODY_KNOWN:
        return about
    agent, session = (await decide(detector, auth, [about.agent, about.session], rules)).value
    return About(agent=agent, session=session)
