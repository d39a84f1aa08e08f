"""After which step a retry goes on."""

import pytest
from msgspec.structs import replace

from ports.errors import Conflict
from ports.messages import Fault
from ports.run_state import EffectClass, RunStatus, Step, StepStatus
from stack_a.runs.again import retry_point
from tests.unit.test_run_plan import RUN, done, model_step

FAILED = replace(RUN, status="failed")
FAULT = Fault(code="x", message="x")
MODEL = model_step(1, add="{}", send="{}")
ADD, SEND = done(2, "tool", "add", 1), done(3, "tool", "send", 1, effect="unsafe")


def without_result(step: Step, status: StepStatus) -> Step:
    return replace(step, status=status, output=None)


def test_nothing_stands_in_an_empty_journal() -> None:
    assert retry_point(FAILED, []) == 0


def test_what_has_results_stands() -> None:
    assert retry_point(FAILED, [MODEL, ADD, SEND]) == 3


def test_a_failed_model_call_is_made_again() -> None:
    assert retry_point(FAILED, [MODEL, ADD, SEND, done(4, "model", "m", None, error=FAULT)]) == 3


def test_a_failed_tool_stands_because_the_model_was_told() -> None:
    assert retry_point(FAILED, [MODEL, done(2, "tool", "add", None, error=FAULT), SEND]) == 3


@pytest.mark.parametrize("status", ["started", "unknown", "planned"])
def test_a_pure_call_without_a_result_is_made_again(status: StepStatus) -> None:
    assert retry_point(FAILED, [MODEL, without_result(ADD, status)]) == 1


@pytest.mark.parametrize("status", ["started", "unknown", "planned"])
@pytest.mark.parametrize("effect", ["idempotent", "unsafe"])
def test_a_call_that_may_have_taken_effect_is_not_made_again_unasked(status: StepStatus, effect: EffectClass) -> None:
    with pytest.raises(Conflict, match=r"step 3, a call of 'send'.*after step 2") as refusal:
        retry_point(FAILED, [MODEL, ADD, replace(without_result(SEND, status), effect=effect)])

    assert refusal.value.details == {"from_step": 2}


@pytest.mark.parametrize("status", ["started", "unknown", "planned"])
def test_a_transactional_call_without_a_result_took_no_effect_and_is_made_again(status: StepStatus) -> None:
    assert retry_point(FAILED, [MODEL, ADD, replace(without_result(SEND, status), effect="transactional")]) == 2


def test_a_transactional_call_that_succeeded_beside_one_that_is_repeated_is_not_made_again_unasked() -> None:
    with pytest.raises(Conflict, match="step 3"):
        retry_point(FAILED, [MODEL, without_result(ADD, "unknown"), replace(SEND, effect="transactional")])


def test_a_call_that_succeeded_beside_one_that_is_repeated_is_not_made_again_unasked() -> None:
    with pytest.raises(Conflict, match="step 3"):
        retry_point(FAILED, [MODEL, without_result(ADD, "unknown"), SEND])


@pytest.mark.parametrize("status", ["queued", "running", "waiting", "succeeded", "needs_operator"])
def test_a_run_that_did_not_go_wrong_is_not_retried(status: RunStatus) -> None:
    with pytest.raises(Conflict, match=status):
        retry_point(replace(RUN, status=status), [MODEL])
