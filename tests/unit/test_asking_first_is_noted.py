"""A denial that somebody asked for, without a call, is in the audit as one of a call is: by its route it is told apart."""

from typing import Any, Final

import pytest

from conformance.people import ACME
from ports.request_log import DENIED
from tests.support.held_backend import HeldBackend
from tests.support.stack_b import stack_b
from tests.unit.test_request_records import table

pytestmark = [pytest.mark.anyio]

CHECK: Final = "/v1/policy/check"
COUNT: Final = "/v1/messages/count_tokens"
SAID: Final = [{"role": "user", "content": "write to canary.bird@example.com"}]
NO_WRITING: Final = [{"id": "no", "effect": "deny", "keywords": ["write to"]}]


async def asked(path: str, body: dict[str, Any], **settings: Any) -> tuple[int, Any, list[Any], list[Any]]:
    """What was answered, and what is in the audit and the log by then."""
    async with stack_b(HeldBackend(held=False), **settings) as node:
        answer = await node.post(path, body)
        audit, rows = list(table(node).audit), [one.record for one in table(node).rows.values()]
    return answer.status_code, answer.json(), audit, rows


@pytest.mark.parametrize("path", [CHECK, COUNT])
async def test_what_is_not_entitled_is_in_the_audit_when_it_is_told(path: str) -> None:
    status, answer, audit, [record] = await asked(path, {"model": "other", "messages": SAID})

    assert (status, answer["error"].get("code") or answer["error"]["details"]["error_code"]) == (
        403,
        "model_not_entitled",
    )
    assert audit == [(ACME.tenant, DENIED, record.id)]
    assert (record.route, record.denied, record.status, record.code) == (path, True, 403, "model_not_entitled")
    assert (record.principal, record.model_asked) == (ACME.principal, ""), "it leads nowhere"


@pytest.mark.parametrize(
    ("settings", "code", "reasons"),
    [
        ({"rules": NO_WRITING}, "policy_blocked", ("rule:tenant/no",)),
        ({"pii_modes": {"email": "block"}}, "policy_blocked", ("pii:email",)),
    ],
    ids=["a rule", "personal data"],
)
async def test_what_a_policy_denies_is_in_the_audit_when_it_is_told(
    settings: dict[str, Any], code: str, reasons: tuple[str, ...]
) -> None:
    status, answer, audit, [record] = await asked(CHECK, {"model": "m-1", "messages": SAID}, **settings)

    assert (status, answer["refusal"]) == (200, code)
    assert audit == [(ACME.tenant, DENIED, record.id)]
    assert (record.route, record.denied, record.status, record.code) == (CHECK, True, 200, code)
    assert record.reasons == reasons


@pytest.mark.parametrize("path", [CHECK, COUNT])
async def test_what_may_be_asked_leaves_nothing(path: str) -> None:
    status, _, audit, rows = await asked(path, {"model": "m-1", "messages": SAID})

    assert (status, audit, rows) == (200, [], [])


@pytest.mark.parametrize("path", [CHECK, COUNT])
async def test_nobody_fills_the_audit_faster_by_asking_than_by_calling(path: str) -> None:
    async with stack_b(HeldBackend(held=False), entitled={"requests_per_minute": 3}) as node:
        statuses = [(await node.post(path, {"model": "other", "messages": SAID})).status_code for _ in range(6)]
        audit = list(table(node).audit)

    assert statuses == [403] * 3 + [429] * 3
    assert len(audit) == 3
