import pytest

from adapters.builtin_tools.calculator import MAX_DEPTH, MAX_DIGITS, Answer, evaluate
from ports.errors import AgentOSError


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("0.1 + 0.2", "0.3"),
        ("17.5 % of 2340", "409.5"),
        ("17.5% of 2340 + 1", "410.5"),
        ("50 % of 20 % of 10", "1"),
        ("5 / 20 % of 40", "0.625"),
        ("20 %", "0.2"),
        ("50 % * 3", "1.5"),
        ("15 % + 5 %", "0.2"),
        ("10 % 3", "1"),
        ("(10 %) - 3", "-2.9"),
        ("7 % (-2)", "-1"),
        ("-7 // 2", "-4"),
        ("-7 % 2", "1"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("2 ** 3 ** 2", "512"),
        ("-2 ** 2", "-4"),
        ("2 ^ -1", "0.5"),
        ("- - 3", "3"),
        ("3 × 4 ÷ 2 − 1", "5"),
        ("sqrt(16) + abs(-2)", "6"),
        ("round(2.345, 2)", "2.35"),
        ("round(2.5)", "3"),
        ("round(1234, -2)", "1200"),
        ("min(1, 2, 0.5) + max(3, 4)", "4.5"),
        ("1.5e3", "1500"),
        ("123456789012345678901234567890 * 3", "370370367037037036703703703670"),
        ("0 * -1", "0"),
    ],
)
def test_an_expression_has_the_value_school_teaches_exactly(expression: str, result: str) -> None:
    assert evaluate(expression) == Answer(result, exact=True)


@pytest.mark.parametrize(
    ("expression", "start"), [("1 / 3", "0.3333333333"), ("sqrt(2)", "1.41421356"), ("1/3*3", "1")]
)
def test_a_rounded_result_says_that_it_is(expression: str, start: str) -> None:
    answer = evaluate(expression)

    assert answer.text.startswith(start)
    assert not answer.exact


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "1 2", "1 +", "(1", "1)", "2,340 + 1", "five", "__import__('os')", "x.y", "1; 2", "5 % of", "% 3",
        "200 + 15 %", "100 - 5 %", "7 % -2", "sqrt()", "sqrt(1, 2)", "round(1, 2, 3)", "round(1, 0.5)", "round(1, 51)",
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "2**" * (MAX_DEPTH + 2) + "1", "1" * (MAX_DIGITS + 1),
        "1+" * 400 + "1", "٣ + ١", "1 == 1", "0x10", "1 if 1 else 2", "\x00",
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_a_bad_argument(expression: str) -> None:
    with pytest.raises(AgentOSError) as refusal:
        evaluate(expression)

    assert refusal.value.code == "tool_bad_arguments"


@pytest.mark.parametrize(
    "expression",
    [
        "1 / 0", "1 // 0", "1 % 0", "1 / (2 - 2)", "0 ** -1", "0 ** 0", "sqrt(-1)", "(-8) ** (1/3)", "9**9**9", "2 ** 1000",
        "1e400", "1e60 * 1e60", "10 ** 1001", "1e9999 ** 1000",
    ],
)  # fmt: skip
def test_what_has_no_value_fails_and_says_so(expression: str) -> None:
    with pytest.raises(AgentOSError) as failure:
        evaluate(expression)

    assert failure.value.code == "tool_failed"
    assert not failure.value.retryable
