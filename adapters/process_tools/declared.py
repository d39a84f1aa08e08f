"""The tools of a file, as their operator writes them down; `docs/tools.md` explains every member."""

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from msgspec import Meta, Struct

from ports.errors import InvalidArgument
from ports.http import strict_json
from ports.messages import Json
from ports.tool import MAX_OUTPUT_BYTES, ToolSpec

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_TIMEOUT_S: Final = 24 * 60 * 60
"""As long as a run may take."""
REMEDY: Final = "docs/tools.md has an example of a whole file"

Name: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Scope: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z]+:[a-z_-]+\Z")]
Command: TypeAlias = Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]


class DeclaredTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    description: Annotated[str, Meta(min_length=1, max_length=2_000)]
    """What a model reads to know when to call it."""
    input_schema: dict[str, Json]
    effect: Literal["pure", "idempotent", "unsafe"]
    command: Command
    """The program and its arguments. What begins with `./` is beside the file; a name without `/` is looked up in PATH."""
    reconcile: Command | None = None
    """A command that tells what became of an interrupted call."""
    timeout_s: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)] = 30.0
    max_output_bytes: Annotated[int, Meta(ge=1, le=MAX_OUTPUT_BYTES)] = MAX_OUTPUT_BYTES
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = ("tools:invoke",)

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(
            name=self.name,
            description=self.description,
            input_schema=self.input_schema,
            effect=self.effect,
            timeout=timedelta(seconds=self.timeout_s),
            max_output_bytes=self.max_output_bytes,
            scopes=self.scopes,
        )


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tools: tuple[DeclaredTool, ...]


def read_tools(path: Path, *, search: str | None = None) -> tuple[DeclaredTool, ...]:
    """The tools in the file, sorted by name, their commands with whole paths; programs are looked up in `search`.

    Raises:
        InvalidArgument: it can't be used; the text says the place in the file, and what would be right.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"the tools file {str(path)!r} can't be read: {error.strerror}") from None
    try:
        return _usable(raw, path.absolute().parent, search or os.defpath)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}; {REMEDY}") from None


def _usable(raw: bytes, beside: Path, search: str) -> tuple[DeclaredTool, ...]:
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidArgument(f"it is too long; a tools file has at most {MAX_FILE_BYTES} bytes")
    value = strict_json.parse(raw)
    try:
        tools = msgspec.convert(value, _File).tools
    except msgspec.ValidationError as error:
        raise InvalidArgument(str(error)) from None
    found: dict[str, DeclaredTool] = {}
    for i, tool in enumerate(tools):
        place = f"$.tools[{i}]"
        if tool.name in found:
            raise InvalidArgument(f"{place}.name: {tool.name!r} is declared twice; give each tool a name of its own")
        _check_schema(tool.input_schema, f"{place}.input_schema")
        reconcile = tool.reconcile and _whole(tool.reconcile, f"{place}.reconcile", beside, search)
        command = _whole(tool.command, f"{place}.command", beside, search)
        found[tool.name] = msgspec.structs.replace(tool, command=command, reconcile=reconcile)
    return tuple(found[name] for name in sorted(found))


def _check_schema(schema: dict[str, Json], place: str) -> None:
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidArgument(f"{place}{error.json_path[1:]}: is not valid JSON Schema (draft 2020-12)") from None
    if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
        raise InvalidArgument(f'{place}: must have "type": "object" and "additionalProperties": false')
    if reference := _remote_reference(schema):
        raise InvalidArgument(f"{place}: refers to {reference!r}; only references inside the schema (#/…) are followed")


def _remote_reference(schema: Any) -> str | None:  # any part of a schema
    """The first `$ref` that would have to be fetched from somewhere."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            return reference
        parts = list(schema.values())
    else:
        parts = schema if isinstance(schema, list) else []
    return next((found for part in parts if (found := _remote_reference(part))), None)


def _whole(command: Command, place: str, beside: Path, search: str) -> Command:
    """With absolute paths for what is beside the file, and for the program wherever it is."""
    words = tuple(str(beside / word) if word.startswith("./") else word for word in command)
    program = shutil.which(words[0], path=search)
    if program is None or not Path(program).is_absolute():
        raise InvalidArgument(
            f"{place}: there is no program {command[0]!r} that may be executed; write an absolute path, ./ and a path "
            "beside this file, or a name that PATH leads to"
        )
    return (program, *words[1:])
