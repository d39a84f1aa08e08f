"""Settings of a service process: `AGENTOS_*` variables in, values out. Secrets come as references only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from ports.errors import InvalidArgument

PREFIX: Final = "AGENTOS_"

Mode: TypeAlias = Literal["demo", "dev", "prod"]


class Environment:
    """Reads the variables of one process, naming the variable whenever one can't be used."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables

    def text(self, name: str, default: str = "") -> str:
        """The variable `AGENTOS_<name>`; an empty one counts as unset."""
        return self.variables.get(PREFIX + name) or default

    def required(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise InvalidArgument(f"{PREFIX}{name} is not set; start the node with `agentos up`, or set it")
        return value

    def number(self, name: str, default: int, *, least: int = 0, most: int = 2**31 - 1) -> int:
        text = self.text(name, str(default))
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise InvalidArgument(f"{PREFIX}{name} must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    def path(self, name: str) -> Path | None:
        text = self.text(name)
        return Path(text) if text else None

    def mode(self) -> Mode:
        text = self.text("MODE", "dev")
        for mode in get_args(Mode):
            if text == mode:
                found: Mode = mode
                return found
        raise InvalidArgument(f"{PREFIX}MODE must be one of {', '.join(get_args(Mode))}, not {text!r}")

    def secret_file(self, name: str) -> str:
        """The content of the file that `AGENTOS_<name>` names, without the white space around it."""
        return resolve("file:" + self.required(name), self.variables)


def resolve(reference: str, variables: Mapping[str, str]) -> str:
    """The secret behind `env:NAME` or `file:/path`.

    Raises:
        InvalidArgument: not a reference, or nothing is there. The text never quotes a secret.
    """
    kind, _, where = reference.partition(":")
    if kind == "env" and where:
        value = variables.get(where, "")
    elif kind == "file" and where:
        try:
            value = Path(where).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the secret file {where!r} can't be read: {type(error).__name__}") from None
    else:
        raise InvalidArgument("a secret must be a reference: `env:NAME` or `file:/path`")
    if not value:
        raise InvalidArgument(f"there is no secret at {reference!r}")
    return value
