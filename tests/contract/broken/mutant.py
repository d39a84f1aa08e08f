"""What a broken adapter's test class says about itself."""

from typing import Any, ClassVar

import pytest

from tests.support.instant_loop import InstantLoop


class Mutant:
    caught_by: ClassVar[frozenset[str]]
    """Names of the tests that must fail, parameters left out; every other test must pass."""

    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, Any]]:
        # A mutant that hangs is given up on at once, and a busy machine can't make an honest test look hung.
        return "asyncio", {"loop_factory": InstantLoop}
