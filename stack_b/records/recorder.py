"""From a request that is over to its record, and to its texts where its tenant wants them kept.

Texts are kept redacted, whatever the tenant lets a model see, and sealed. Where that can't be done they are not kept.
"""

import logging
from types import TracebackType
from typing import Any, Final

import msgspec
from msgspec.structs import force_setattr

from ports.context import AuthContext
from ports.errors import AgentOSError, Internal, PermissionDenied
from ports.http.envelope import status_of
from ports.messages import Json
from ports.model import PolicyOutcome
from ports.request_log import RequestRecord, Written, new_request_id
from stack_b.budget.spending import NOTHING_USED
from stack_b.caller import Gone
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.deps import StackBDeps
from stack_b.inspection.inspector import Inspector
from stack_b.kept_texts import Texts
from stack_b.policy import REDACT
from stack_b.receipt import Trail
from stack_b.records.writer import RecordWriter
from stack_b.redaction.weight import weigh
from stack_b.replay import is_streamed

CONTENT: Final = "content"
"""What texts are sealed for."""
CLIENT_GONE: Final = 499
_CLIENT_GONE_CODE: Final = "cancelled"
_OK: Final = 200
_BUG: Final = Internal("a bug")

logger = logging.getLogger("agentos.gateway")


class Recorder:
    def __init__(self, deps: StackBDeps, inspector: Inspector) -> None:
        self._clock = deps.clock
        self._vault = deps.vault
        self._inspector = inspector
        self._knows = deps.router.knows
        self.writer = RecordWriter(deps.request_log, deps.clock)

    def recorded(self, trail: Trail, call: ChatCall | EmbedCall) -> "_Recorded":
        """A block around a request: note how it ended, whichever way it does. A denial is audited before it is told."""
        return _Recorded(self, trail, call)

    async def over(self, trail: Trail, call: ChatCall | EmbedCall, error: BaseException | None) -> None:
        written = Written(record=record_of(trail, call, error))
        if trail.candidate is None and not self._knows(call.model):
            # What leads nowhere may be any text.
            written = Written(record=msgspec.structs.replace(written.record, model_asked=""))
        if isinstance(error, PermissionDenied):
            await self.writer.denied(trail.auth, written)
            return
        if error is None and trail.texts is not None:
            written = await self._kept(trail, written, trail.texts)
        self.writer.note(trail.auth, written)

    def went_well(self, trail: Trail, call: ChatCall | EmbedCall) -> None:
        """`over` without an error, where no texts are kept: nothing is waited for."""
        self.writer.note(trail.auth, Written(record=of_success(trail, call)))

    async def turned_away(self, auth: AuthContext, route: str, error: PermissionDenied) -> None:
        """A request of somebody known that came no further than the edge: it is in the audit before it is told."""
        record = self._of(auth, route, status=status_of(error), code=error.code, denied=True)
        await self.writer.denied(auth, Written(record=record))

    async def foretold(
        self, auth: AuthContext, call: ChatCall | EmbedCall, outcome: PolicyOutcome, refusal: str
    ) -> None:
        """Somebody who asked first is told that a call would be denied: it is in the audit before that."""
        record = self._of(
            auth,
            call.route,
            model_asked=call.model if self._knows(call.model) else "",
            code=refusal,
            denied=True,
            decision=outcome.decision,
            reasons=outcome.reasons,
        )
        await self.writer.denied(auth, Written(record=record))

    def told_to_end(self, auth: AuthContext, route: str, *, aborted: bool) -> None:
        """A call was to be ended by its step key."""
        reason = "step:aborted" if aborted else "step:nothing_under_way"
        self.writer.note(auth, Written(record=self._of(auth, route, reasons=(reason,))))

    def replayed(self, auth: AuthContext, call: ChatCall | EmbedCall, reply: dict[str, Json], *, joined: bool) -> None:
        """A request that was answered with what another one has paid."""
        route = reply.get("route") or {}
        record = self._of(
            auth,
            call.route,
            stream=is_streamed(call),
            model_asked=call.model,
            model=route.get("model") or "",
            backend=route.get("backend") or "",
            decision=(reply.get("policy_outcome") or {}).get("decision") or "",
            replayed=True,
            joined=joined,
        )
        self.writer.note(auth, Written(record=record))

    def _of(self, auth: AuthContext, route: str, **said: Any) -> RequestRecord:
        """Of a request for which no backend was asked. `said`: whatever else of the record there is to say."""
        now = self._clock.now()
        about = {"model_asked": "", "status": _OK, **said}
        return RequestRecord(
            id=new_request_id(now),
            at=now,
            namespace=auth.namespace,
            principal=auth.principal,
            correlation_id=auth.trace.correlation_id,
            route=route,
            **about,
        )

    async def _kept(self, trail: Trail, written: Written, texts: Texts) -> Written:
        record = written.record
        said: Json = {"prompt": texts.prompt, "answer": texts.answer}
        try:
            dear = self._inspector.is_dear(said, weigh(said))
            decision = await self._inspector.decide(trail.auth, said, REDACT, dear=dear)
        except AgentOSError as error:
            logger.warning("record.not_kept", extra={"tenant_id": trail.auth.tenant, "code": error.code})
            return written
        sealed = self._vault.seal(trail.auth.tenant, CONTENT, record.id, msgspec.json.encode(decision.value))
        return Written(record=msgspec.structs.replace(record, kept_until=record.at + texts.keep), sealed=sealed)


class _Recorded:
    __slots__ = ("_call", "_recorder", "_trail")

    def __init__(self, recorder: Recorder, trail: Trail, call: ChatCall | EmbedCall) -> None:
        self._recorder = recorder
        self._trail = trail
        self._call = call

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._recorder.over(self._trail, self._call, error)


def of_success(trail: Trail, call: ChatCall | EmbedCall) -> RequestRecord:
    """`record_of` without an error. Of nearly every request: with more than 15 keywords a call would make a dictionary of
    them first, so what most have as it is by itself comes afterwards."""
    auth, candidate, outcome, spending = trail.auth, trail.candidate, trail.outcome, trail.spending
    assert candidate is not None, "it was answered"
    assert outcome is not None
    assert spending is not None
    used = spending.total
    record = RequestRecord(
        id=trail.request,
        at=trail.at,
        namespace=auth.namespace,
        principal=auth.principal,
        correlation_id=auth.trace.correlation_id,
        route=call.route,
        model_asked=call.model,
        model=candidate.card.id,
        backend=candidate.backend.name,
        status=_OK,
        decision=outcome.decision,
        attempts=trail.attempts,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        latency_ms=trail.took_ms(),
    )
    # Nobody else has seen it yet.
    if used.cost_nanousd:
        force_setattr(record, "cost_nanousd", used.cost_nanousd)
    if used.estimated:
        force_setattr(record, "estimated", True)
    if outcome.reasons:
        force_setattr(record, "reasons", outcome.reasons)
    if is_streamed(call):
        force_setattr(record, "stream", True)
    return record


def record_of(trail: Trail, call: ChatCall | EmbedCall, error: BaseException | None) -> RequestRecord:
    auth, candidate, outcome = trail.auth, trail.candidate, trail.outcome
    used = NOTHING_USED if trail.spending is None else trail.spending.total
    status, code = (_OK, "") if error is None else _ended(error)
    return RequestRecord(
        id=trail.request,
        at=trail.at,
        namespace=auth.namespace,
        principal=auth.principal,
        correlation_id=auth.trace.correlation_id,
        route=call.route,
        stream=is_streamed(call),
        model_asked=call.model,
        model="" if candidate is None else candidate.card.id,
        backend="" if candidate is None else candidate.backend.name,
        status=status,
        code=code,
        denied=isinstance(error, PermissionDenied),
        decision="" if outcome is None else outcome.decision,
        reasons=() if outcome is None else outcome.reasons,
        attempts=trail.attempts,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        cost_nanousd=used.cost_nanousd,
        estimated=used.estimated,
        latency_ms=trail.took_ms(),
    )


def _ended(error: BaseException) -> tuple[int, str]:
    """Status and code of what came to nothing."""
    if isinstance(error, AgentOSError):
        return status_of(error), error.code
    if isinstance(error, Gone):
        return CLIENT_GONE, _CLIENT_GONE_CODE
    return (status_of(_BUG), _BUG.code) if isinstance(error, Exception) else (CLIENT_GONE, _CLIENT_GONE_CODE)
