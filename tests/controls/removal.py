"""What it means to take a control out."""

from msgspec import Struct

from tests.support.threat_model import rows


class Removal(Struct, frozen=True):
    row: str
    """Of `docs/threat-model.md`: a letter of STRIDE and a number."""
    path: str
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Names of some that the row names: all of them must fail."""

    @property
    def ids(self) -> list[str]:
        """Each as `path::name`, as the row has them."""
        return [test for test in rows()[self.row].tests if test.partition("::")[2] in self.tests]
