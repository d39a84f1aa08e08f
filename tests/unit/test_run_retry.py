"""After which step a retry goes on."""

import pytest
from msgspec.structs import replace

from ports.errors import Conflict
from ports.messages import Fault
from ports.run_state import EffectClass, RunStatus, Step, StepStatus
from stack_a.runs.again import retry_point, undecidable, unforkable
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


@pytest.mark.parametrize(
    ("status", "instead"),
    [
        ("queued", "cancel it first"),
        ("running", "cancel it first"),
        ("waiting", "cancel it first"),
        ("succeeded", "fork it"),
        ("needs_operator", "decide about the step"),
    ],
)
def test_a_run_that_did_not_go_wrong_is_not_retried(status: RunStatus, instead: str) -> None:
    with pytest.raises(Conflict, match=f"is {status}.*{instead}"):
        retry_point(replace(RUN, status=status), [MODEL])


@pytest.mark.parametrize(
    ("journal", "says", "last"),
    [
        ([MODEL, ADD, SEND], "it has 3 steps; 0 (begins anew) to 3 can be chosen", 3),
        ([MODEL, replace(SEND, n=2, status="unknown")], "step 2 is unknown; 0 (begins anew) to 1 can be chosen", 1),
        ([MODEL, without_result(ADD, "started"), SEND], "step 2 is started; 0 (begins anew) to 1 can be chosen", 1),
        ([without_result(MODEL, "started")], "it has 1 step, and step 1 is started; only 0 (begins anew) can be", 0),
        ([], "it has no steps; only 0 (begins anew) can be chosen", 0),
    ],
)
def test_a_fork_that_can_not_be_says_which_steps_can_be_chosen(journal: list[Step], says: str, last: int) -> None:
    refusal = unforkable(RUN.id, 9, journal)

    assert f"{RUN.id!r} can't be forked after step 9: " in refusal.message
    assert says in refusal.message
    assert refusal.details == {"steps": len(journal), "max_from_step": last}


@pytest.mark.parametrize(
    ("n", "journal", "says", "steps"),
    [
        (9, [MODEL, without_result(ADD, "unknown"), without_result(SEND, "unknown")], "; the steps 2, 3 do", [2, 3]),
        (1, [MODEL, without_result(ADD, "unknown")], "; step 2 does", [2]),
    ],
)
def test_a_decision_about_another_step_names_those_that_wait(
    n: int, journal: list[Step], says: str, steps: list[int]
) -> None:
    refusal = undecidable(replace(RUN, status="needs_operator"), n, journal)

    assert refusal.message == f"step {n} of run {RUN.id!r} waits for no decision{says}"
    assert refusal.details == {"steps": steps}


def test_a_decision_about_a_run_that_waits_for_none_says_so() -> None:
    refusal = undecidable(replace(RUN, status="succeeded"), 1, [MODEL])

    assert refusal.message == f"run {RUN.id!r} is succeeded and waits for no operator: there is nothing to decide"
