"""Where the pipeline asks: the policies that hold for a tenant, compiled once for each version of them."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import InvalidArgument, PermissionDenied, Unavailable
from ports.ids import TenantId
from ports.messages import Json
from ports.model import PolicyOutcome
from ports.policy import Policy
from ports.tenant import Tenant
from stack_b.backends.catalog import Candidate
from stack_b.policies.answer import Guarded
from stack_b.policies.problems import TENANT
from stack_b.policies.rules import NOTHING, Rules, Ruling, Subject
from stack_b.redaction.answer import Answer

_NAMES: Final = 8
_NAME_CHARS: Final = 64
"""Of a client's own words in an error."""
MAX_TENANTS: Final = 1_000
"""Whose compiled policies are kept; a pattern is some kilobytes."""

logger = logging.getLogger("agentos.gateway")


class Policies:
    """The node's, and each tenant's own beside them."""

    def __init__(self, node: Mapping[str, Policy] | None = None) -> None:
        """Raises `InvalidArgument` for a rule that can't be used."""
        self._node: Mapping[str, Policy] = node or {}
        self._of_node = Rules(self._node) if self._node else NOTHING
        self._known: OrderedDict[TenantId, tuple[Policy, Rules | None]] = OrderedDict()

    def follow(self, node: Mapping[str, Policy]) -> None:
        """From the next request on. Raises like the constructor, and then changes nothing."""
        if node == self._node:
            return
        self._of_node = Rules(node)
        self._node = node
        self._known.clear()

    def of(self, tenant: Tenant) -> Rules:
        """Raises `Unavailable` where the tenant's own can't be used: what was to be denied must not pass (fail closed)."""
        policy = tenant.entitlements.policy
        if not policy.rules:
            return self._of_node
        known = self._known.get(tenant.id)
        if known is None or (known[0] is not policy and known[0] != policy):
            known = self._known[tenant.id] = (policy, self._compiled(tenant))
            self._known.move_to_end(tenant.id)
            if len(self._known) > MAX_TENANTS:
                self._known.popitem(last=False)
        if known[1] is None:
            raise Unavailable("the tenant's policy can't be used by this gateway; ask the operator of this node")
        return known[1]

    def _compiled(self, tenant: Tenant) -> Rules | None:
        try:
            return Rules({**self._node, TENANT: tenant.entitlements.policy})
        except InvalidArgument as error:
            reason = {"tenant_id": tenant.id, "reason": error.message}
            logger.error("policy.unusable", extra=reason)  # noqa: TRY400 - the reason says it
            return None


class Ruled(Struct, frozen=True, kw_only=True):
    """What policies decided on a request, and will on its answer."""

    candidates: tuple[Candidate, ...]
    """Those who may be asked."""
    ruling: Ruling | None = None
    rules: Rules = NOTHING
    subject: Subject | None = None

    @property
    def blocked(self) -> PolicyOutcome | None:
        """What is told of a request that nobody may be asked."""
        if self.candidates or self.ruling is None:
            return None
        return PolicyOutcome(decision="blocked", reasons=self.ruling.reasons)

    @property
    def refusal(self) -> PermissionDenied:
        """Of such a request. It names rules and functions, and nothing that was said."""
        assert self.ruling is not None, "only what was decided is refused"
        reasons = list(self.ruling.reasons)
        if self.ruling.denials[0].offers and all(one.offers for one in self.ruling.denials):
            tools = list(dict.fromkeys(one.function[:_NAME_CHARS] for one in self.ruling.denials))[:_NAMES]
            return PermissionDenied(
                f"this tenant may not offer these tools to a model: {', '.join(tools)}; leave them out and ask again",
                code="tool_not_permitted",
                details={"reasons": reasons, "tools": tools, "path": "$.tools"},
            )
        return PermissionDenied(
            f"a policy denies this request: {', '.join(reasons)}",
            code="policy_blocked",
            details={"reasons": reasons},
        )

    def guarded(self, answer: Answer) -> Answer | Guarded:
        if self.subject is None or not self.rules.on_answers:
            return answer
        return Guarded(answer, self.rules, self.subject)


def ruled(
    rules: Rules,
    auth: AuthContext,
    members: Mapping[str, Json],
    candidates: tuple[Candidate, ...],
    *,
    agent: str,
    tier: str,
    may_write: Callable[[Candidate], int],
    texts: tuple[str, ...] | None = None,
) -> Ruled:
    """Decide on a request. `candidates` is not empty; see `Subject` for the rest."""
    subject = Subject(auth, members, agent=agent, tier=tier, may_write=may_write, texts=texts)
    ruling = rules.request(subject, candidates)
    return Ruled(candidates=ruling.permitted, ruling=ruling, rules=rules, subject=subject)
