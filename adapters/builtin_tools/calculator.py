"""Arithmetic in decimals: 0.1 + 0.2 is 0.3.

A small parser of our own instead of Python's: it reads percent the way people write it, and there is no way from an
expression to anything but numbers. What can't be read is `tool_bad_arguments`; what was read and has no answer (a
division by zero, the root of a negative number, a result of more than `MAX_DIGITS` digits) is `tool_failed`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException, DivisionByZero, Inexact, InvalidOperation, Overflow
from typing import Final

from adapters.builtin_tools.tool import Arguments, Tool, bad_arguments, failed, object_schema
from ports.context import AuthContext
from ports.messages import Json
from ports.tool import ToolCall, ToolSpec

MAX_EXPRESSION_CHARS: Final = 500
MAX_DEPTH: Final = 50
MAX_DIGITS: Final = 100
MAX_EXPONENT: Final = 1_000
MAX_ROUND_PLACES: Final = 50

# Half of the working digits: what remains of 1/3*3 after rounding is 1, and no one reads more.
_SHOWN_DIGITS: Final = 50

_TOKEN: Final = re.compile(
    r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d{1,4})?|\.\d+)|([a-zA-Z]+)|(\*\*|//|[-+*/%^(),]))", re.ASCII
)

# What people and models type for the operators: the look-alikes are the point.
_TYPED: Final = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "\u00a0": " "})

SPEC: Final = ToolSpec(
    name="calculator",
    description=(
        "Evaluates one arithmetic expression exactly, in decimals. Operators: + - * / // (floor division) % (remainder) "
        "** or ^ (power), parentheses. Percent: '17.5 % of 2340', '20 %'. Functions: sqrt(x), abs(x), round(x, places), "
        "min(a, b, ...), max(a, b, ...). Write numbers without thousands separators."
    ),
    input_schema=object_schema(
        {
            "expression": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_EXPRESSION_CHARS,
                "description": "for example: 17.5 % of 2340",
            }
        },
        required=("expression",),
    ),
    effect="pure",
)


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    exact: bool
    """False when digits were rounded away, as in 1/3."""


@dataclass(frozen=True, slots=True)
class _Value:
    number: Decimal
    percent: bool = False
    """Written with a percent sign, and not yet part of a sum or product."""


def evaluate(expression: str) -> Answer:
    """The value of `expression`.

    Raises:
        InvalidArgument: `tool_bad_arguments`: it can't be read, or exceeds a limit of size or depth.
        Unavailable: `tool_failed`: it has no value, or one with too many digits.
    """
    # A context of our own: the thread's default is anybody's to change.
    context = Context(prec=MAX_DIGITS, Emax=10_000, Emin=-10_000, traps=[DivisionByZero, InvalidOperation, Overflow])
    try:
        number = _Parser(_tokens(expression), context).parse()
        rounded = Context(prec=_SHOWN_DIGITS).plus(number) if context.flags[Inexact] else number
    except DivisionByZero as error:
        raise failed("division by zero has no result") from error
    except DecimalException as error:
        raise failed(f"the result is not a real number of at most {MAX_DIGITS} digits") from error
    if rounded.adjusted() >= MAX_DIGITS:
        raise failed(f"the result has more than {MAX_DIGITS} digits; calculate with smaller numbers")
    return Answer(_plain(rounded), exact=not context.flags[Inexact])


async def _act(_auth: AuthContext, arguments: Arguments, _call: ToolCall) -> Json:
    answer = evaluate(arguments["expression"])
    return {"result": answer.text, "exact": answer.exact}


def calculator() -> Tool:
    return Tool(spec=SPEC, act=_act)


def _tokens(expression: str) -> list[str]:
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise bad_arguments(f"the expression has more than {MAX_EXPRESSION_CHARS} characters; split it")
    text = expression.translate(_TYPED).strip()
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise bad_arguments(f"the expression can't be read from character {at + 1} on; see the tool's description")
        token = match.group(match.lastindex or 0)
        if match.group(1) and sum(map(str.isdigit, token)) > MAX_DIGITS:
            raise bad_arguments(f"a number has more than {MAX_DIGITS} digits")
        tokens.append("**" if token == "^" else token)  # noqa: S105  # an operator, not a secret
        at = match.end()
    return tokens


def _plain(number: Decimal) -> str:
    """Without an exponent and without trailing zeros; a very small number keeps its exponent."""
    if number == 0:
        return "0"
    number = number.normalize(Context(prec=MAX_DIGITS))
    return str(number) if number.adjusted() < -MAX_DIGITS // 2 else format(number, "f")


class _Parser:
    """Precedence climbing that evaluates as it reads: sums, products, signs, powers, percent, atoms."""

    def __init__(self, tokens: list[str], context: Context) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._context = context

    def parse(self) -> Decimal:
        value = self._sum()
        if self._at < len(self._tokens):
            token = self._tokens[self._at]
            hint = "; write numbers without thousands separators" if token == "," else ""  # noqa: S105  # see above
            raise bad_arguments(f"an operator is missing before {token!r}{hint}")
        return value.number

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        if not token:
            raise bad_arguments("the expression ends too early")
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise bad_arguments(f"{token!r} is missing")

    def _sum(self) -> _Value:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise bad_arguments(f"parentheses or signs are nested more than {MAX_DEPTH} deep")
        left = self._product()
        while self._peek() in ("+", "-"):
            operator = self._take()
            right = self._product()
            if right.percent and not left.percent:
                raise bad_arguments("'a + b %' means different things; write 'a * (1 + b %)' or 'a + b % of c'")
            act = self._context.add if operator == "+" else self._context.subtract
            left = _Value(act(left.number, right.number), left.percent and right.percent)
        self._depth -= 1
        return left

    def _product(self) -> _Value:
        left = self._signed()
        while self._peek() in ("*", "/", "//", "%"):
            operator = self._take()
            left = _Value(self._multiplicative(operator, left.number, self._signed().number))
        return left

    def _multiplicative(self, operator: str, left: Decimal, right: Decimal) -> Decimal:
        if operator == "*":
            return self._context.multiply(left, right)
        if right == 0:
            raise failed("division by zero has no result")
        if operator == "/":
            return self._context.divide(left, right)
        return self._floored(left, right)[0 if operator == "//" else 1]

    def _floored(self, left: Decimal, right: Decimal) -> tuple[Decimal, Decimal]:
        """Quotient rounded down, and the remainder that goes with it; `Decimal` itself rounds towards zero."""
        quotient, remainder = self._context.divmod(left, right)
        if remainder != 0 and (remainder < 0) != (right < 0):
            return self._context.subtract(quotient, Decimal(1)), self._context.add(remainder, right)
        return quotient, remainder

    def _signed(self) -> _Value:
        sign = 1
        while self._peek() in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        value = self._power()
        return _Value(self._context.minus(value.number), value.percent) if sign < 0 else value

    def _power(self) -> _Value:
        base = self._percent(self._atom())
        if self._peek() != "**":
            return base
        self._take()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise bad_arguments(f"powers are nested more than {MAX_DEPTH} deep")
        exponent = self._signed().number
        self._depth -= 1
        if abs(exponent) > MAX_EXPONENT:
            raise failed(f"an exponent is beyond ±{MAX_EXPONENT}")
        if base.number == 0 and exponent < 0:
            raise failed("division by zero has no result")
        return _Value(self._context.power(base.number, exponent))

    def _percent(self, value: _Value) -> _Value:
        """A `%` after an operand: percent, unless another operand follows, which makes it the remainder."""
        if self._peek() != "%":
            return value
        following = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else ""
        if following == "-":
            raise bad_arguments("'% -' means different things; use parentheses: 'a % (-b)' or '(a %) - b'")
        if following == "(" or following[:1].isdigit() or following[:1] == "." or following in _FUNCTIONS:
            return value
        self._take()
        share = self._context.divide(value.number, Decimal(100))
        if following != "of":
            return _Value(share, percent=True)
        self._take()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise bad_arguments(f"percentages are nested more than {MAX_DEPTH} deep")
        whole = self._signed().number
        self._depth -= 1
        return _Value(self._context.multiply(share, whole))

    def _atom(self) -> _Value:
        token = self._take()
        if token == "(":  # noqa: S105  # a parenthesis
            value = self._sum()
            self._expect(")")
            return _Value(value.number, value.percent)
        if token[0].isdigit() or token[0] == ".":
            return _Value(self._context.create_decimal(token))
        function = _FUNCTIONS.get(token.lower())
        if function is None:
            raise bad_arguments(f"{token!r} is not a number or one of the functions {', '.join(_FUNCTIONS)}")
        self._expect("(")
        arguments = [self._sum().number]
        while self._peek() == ",":
            self._take()
            arguments.append(self._sum().number)
        self._expect(")")
        return _Value(function(self._context, arguments))


def _one(name: str, arguments: list[Decimal]) -> Decimal:
    if len(arguments) != 1:
        raise bad_arguments(f"{name} takes one number")
    return arguments[0]


def _sqrt(context: Context, arguments: list[Decimal]) -> Decimal:
    number = _one("sqrt", arguments)
    if number < 0:
        raise failed("the square root of a negative number is not a real number")
    return context.sqrt(number)


def _abs(context: Context, arguments: list[Decimal]) -> Decimal:
    return context.abs(_one("abs", arguments))


def _round(context: Context, arguments: list[Decimal]) -> Decimal:
    """To `places` decimal places, halves away from zero as taught at school."""
    number, places = arguments[0], arguments[1] if len(arguments) > 1 else Decimal(0)
    if len(arguments) > 2 or places != int(places) or abs(places) > MAX_ROUND_PLACES:  # noqa: PLR2004  # a number and its places
        raise bad_arguments(f"round takes a number and whole places up to {MAX_ROUND_PLACES}")
    quiet = context.copy()  # rounding on request is not a loss of exactness
    return number.quantize(Decimal(1).scaleb(-int(places)), rounding="ROUND_HALF_UP", context=quiet)


def _min(_context: Context, arguments: list[Decimal]) -> Decimal:
    return min(arguments)


def _max(_context: Context, arguments: list[Decimal]) -> Decimal:
    return max(arguments)


_FUNCTIONS: Final[Mapping[str, Callable[[Context, list[Decimal]], Decimal]]] = {
    "sqrt": _sqrt,
    "abs": _abs,
    "round": _round,
    "min": _min,
    "max": _max,
}
