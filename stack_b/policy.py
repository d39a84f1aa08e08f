"""The policy decision: what is in a request that its backend may not see. One function, also for `/v1/policy/check`.

Personal data and secrets are replaced by typed placeholders before a backend sees them. Secrets are redacted, not
blocked: a key pasted by accident shouldn't end the conversation, and redacted it can't leak.
"""

from collections import Counter

from msgspec import Struct

from ports.context import AuthContext
from ports.messages import Json
from ports.model import PolicyOutcome
from ports.pii import PiiDetector
from stack_b.redaction.spans import replaced, rewritten, texts


class Finding(Struct, frozen=True, kw_only=True):
    kind: str
    count: int


class Decision(Struct, frozen=True, kw_only=True):
    outcome: PolicyOutcome
    findings: tuple[Finding, ...]
    value: Json
    """What may be sent: the value given, redacted."""


async def decide(detector: PiiDetector, auth: AuthContext, value: Json) -> Decision:
    """Decide on every text in `value`.

    Raises:
        Unavailable: the detector can't tell. Then nothing is sent (fail closed).
    """
    replacements: dict[str, str] = {}
    kinds: Counter[str] = Counter()
    for text in dict.fromkeys(texts(value)):
        spans = await detector.detect(auth, text)
        if spans:
            replacements[text] = replaced(text, spans)
            kinds.update(span.kind for span in spans)
    if not replacements:
        return Decision(outcome=PolicyOutcome(decision="allowed"), findings=(), value=value)
    return Decision(
        outcome=PolicyOutcome(decision="redacted", reasons=tuple(f"pii:{kind}" for kind in sorted(kinds))),
        findings=tuple(Finding(kind=kind, count=kinds[kind]) for kind in sorted(kinds)),
        value=rewritten(value, replacements),
    )
