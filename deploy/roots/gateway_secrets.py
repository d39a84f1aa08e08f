"""What a stored configuration of the gateway may refer to.

A file on this machine may name any secret: whoever writes it reads them anyway. What comes through the admin API may not,
or an administrator of models could have any file of this machine sent to an address of his choice. It may name the files of
one directory, and the variables that the machine's operator has listed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deploy.roots.environment import PREFIX, resolve
from deploy.roots.secret_references import check_secret
from ports.errors import InvalidArgument
from stack_b.backends.settings import references
from stack_b.configuration import Configuration

DIRECTORY: Final = PREFIX + "GATEWAY_SECRETS_DIR"
NAMES: Final = PREFIX + "GATEWAY_ENV"
"""Names of the variables that are set, apart by commas."""


def check_stored(found: Configuration, variables: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` for a reference that a stored configuration may not make."""
    for backend in found.backends:
        for member, reference in references(backend):
            try:
                check_reference(reference, variables)
            except InvalidArgument as error:
                raise InvalidArgument(f"the {member} of backend {backend.name!r}: {error.message}") from None


def check_reference(reference: str, variables: Mapping[str, str]) -> None:
    """As `check_stored`, and also for one that leads nowhere."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        if not where or where not in variables.get(NAMES, "").split(","):
            raise InvalidArgument(
                f"a stored configuration may not refer to the variable {where!r}; list it in {NAMES}, set it, and run `up`"
            )
    elif kind == "file":
        directory = variables.get(DIRECTORY, "")
        # Resolved: a link, or `..`, leads where it leads.
        if not directory or not Path(where).resolve().is_relative_to(Path(directory).resolve()):
            raise InvalidArgument(
                f"a stored configuration may not refer to {where!r}; put it into {directory or DIRECTORY}"
            )
        resolve(reference, variables)
    else:
        # A name in the store: what it may read there is what its token, or the directory, lets it.
        check_secret(reference, variables)
