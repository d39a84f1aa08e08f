"""What an adapter can do beyond its port's clauses, as data that is compared before anything starts.

Each port has a frozen Struct of capabilities whose defaults are the floor that every adapter keeps. A stack states its
need as an instance of the same Struct: a flag needed must be set, a limit needed must be reached.
"""

from msgspec import Struct
from msgspec.structs import asdict


def missing(need: Struct, have: Struct) -> list[str]:
    """The names of the abilities that `need` asks for and `have` lacks, sorted; empty when all is well."""
    if type(need) is not type(have):
        raise TypeError(f"{type(need).__name__} cannot be compared with {type(have).__name__}")
    wanted, given = asdict(need), asdict(have)
    return sorted(name for name, value in wanted.items() if given[name] < value)
