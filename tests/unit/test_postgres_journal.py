"""What an append does to the steps."""

import pytest
from msgspec.structs import replace

from adapters.postgres.blobs import Outgoing
from adapters.postgres.journal import step_rows, usage_of
from ports.errors import Conflict, InvalidArgument
from ports.messages import Usage
from ports.run_state import StepIntent, StepResult


def intent(n: int) -> StepIntent:
    return StepIntent(n=n, kind="tool", name="clock", effect="pure", input={"n": n}, input_digest="d")


def result(n: int, tokens: int = 0) -> StepResult:
    return StepResult(n=n, status="completed", output=n, usage=Usage(prompt_tokens=tokens))


class TestStepRows:
    def test_a_result_and_the_next_intent_are_an_update_and_an_insert(self) -> None:
        inserts, updates = step_rows((result(1), intent(2)), Outgoing())

        assert [(row["n"], row["status"]) for row in inserts] == [(2, "started")]
        assert [(row["n"], row["was"], row["status"]) for row in updates] == [(1, "started", "completed")]

    def test_an_intent_with_its_result_is_one_insert(self) -> None:
        inserts, updates = step_rows((intent(1), result(1)), Outgoing())

        assert [(row["n"], row["status"], row["output"]) for row in inserts] == [(1, "completed", "1")]
        assert updates == []

    def test_a_repeated_intent_is_an_update_of_what_was_planned(self) -> None:
        inserts, updates = step_rows(
            (replace(intent(1), again=True), replace(intent(2), again=True), result(2)), Outgoing()
        )

        assert inserts == []
        assert [(row["n"], row["was"], row["status"]) for row in updates] == [
            (1, "planned", "started"),
            (2, "planned", "completed"),
        ]

    @pytest.mark.parametrize(
        "facts",
        [(intent(1), intent(1)), (result(1), result(1)), (intent(1), result(1), result(1)), (result(1), intent(1))],
        ids=["two intents", "two results", "intent and two results", "result before intent"],
    )
    def test_a_step_twice_conflicts(self, facts: tuple[StepIntent | StepResult, ...]) -> None:
        with pytest.raises(Conflict):
            step_rows(facts, Outgoing())

    def test_a_text_no_encoding_can_hold_is_refused(self) -> None:
        with pytest.raises(InvalidArgument):
            step_rows((StepResult(n=1, status="completed", output="\ud800"),), Outgoing())

    def test_usage_is_the_sum_of_the_results(self) -> None:
        assert usage_of((result(1, 3), intent(2), result(3, 4))) == Usage(prompt_tokens=7)
