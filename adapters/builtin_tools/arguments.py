"""Arguments against a tool's JSON Schema, in words a model can act on and without quoting what it sent."""

from typing import Any, Final

from jsonschema import Draft202012Validator

from adapters.builtin_tools.tool import Arguments, bad_arguments
from ports.messages import Json

_MAX_TOLD: Final = 5
_MAX_DEPTH: Final = 64


class ArgumentCheck:
    """One tool's schema, compiled."""

    def __init__(self, schema: dict[str, Json]) -> None:
        Draft202012Validator.check_schema(schema)
        self._validator = Draft202012Validator(schema)

    def __call__(self, arguments: Json) -> Arguments:
        """`arguments`, known to satisfy the schema. Raises `InvalidArgument` (`tool_bad_arguments`)."""
        if not isinstance(arguments, dict):
            raise bad_arguments("the arguments must be a JSON object")
        _check_text(arguments, 0)
        faults = sorted({_fault(error) for error in self._validator.iter_errors(arguments)})
        if faults:
            raise bad_arguments("the arguments do not fit: " + "; ".join(faults[:_MAX_TOLD]))
        return arguments


def _fault(error: Any) -> str:  # a ValidationError, whose members are typed as possibly unset
    """Where and which rule. The library's own message quotes the value, which may be anything."""
    place = ".".join(str(part) for part in error.absolute_path) or "the object"
    match error.validator:
        case "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            return f"{place} lacks {', '.join(missing)}"
        case "additionalProperties":
            return f"{place} may only have {', '.join(error.schema['properties']) or 'no members'}"
        case _:
            return f"{place} must have {error.validator} {error.validator_value!r}"


def _check_text(value: Json, depth: int) -> None:
    """No store takes NUL or half a surrogate pair; better refused here than where it is written."""
    if depth > _MAX_DEPTH:
        raise bad_arguments(f"the arguments are nested more than {_MAX_DEPTH} deep")
    match value:
        case str():
            if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
                raise bad_arguments("the arguments contain a NUL or half a surrogate pair")
        case dict():
            for name, member in value.items():
                _check_text(name, depth + 1)
                _check_text(member, depth + 1)
        case list() | tuple():
            for member in value:
                _check_text(member, depth + 1)
        case _:
            pass
