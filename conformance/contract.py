"""Contract: what every contract of the kit has in common."""

from collections.abc import Mapping
from typing import ClassVar

from conformance.clauses import clauses_of


class Contract:
    """Base of the contracts. An adapter's tests subclass one, and bring a fixture `harness`.

    The tests can't be overridden: a subclass that defines one of their names anew, itself or through a mixin, fails at
    its creation. What an adapter knowingly can't keep goes into `deviations`, clause id to reason: the clause's tests
    become strict expected failures, so that the entry itself fails once the adapter keeps the clause.
    """

    deviations: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in contract_tests(cls):
            owners = [base for base in cls.__mro__ if name in vars(base)]
            if len(owners) > 1:
                raise TypeError(
                    f"{cls.__name__} overrides {owners[-1].__name__}.{name} in {owners[0].__name__}; "
                    "a contract's tests stand as they are: declare a deviation instead"
                )
        for one in cls.deviations:
            if one not in proven_clauses(cls):
                raise TypeError(f"{cls.__name__}.deviations: no test of this contract proves {one!r}")


def contract_tests(contract: type[Contract]) -> list[str]:
    """Names of the tests that `contract` and its bases in the kit define, in order of definition."""
    names: dict[str, None] = {}
    for base in reversed(contract.__mro__):
        if issubclass(base, Contract):
            names.update(dict.fromkeys(name for name in vars(base) if name.startswith("test_")))
    return list(names)


def proven_clauses(contract: type[Contract]) -> frozenset[str]:
    """Ids of the clauses that the tests of `contract` prove."""
    return frozenset().union(*(clauses_of(getattr(contract, name)) for name in contract_tests(contract)))
