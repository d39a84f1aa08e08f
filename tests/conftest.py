"""What every test has: the asyncio backend for anyio's plugin; and the order of files between processes."""

import pytest
from hypothesis import HealthCheck, settings

from tests.support.order import ALONE, file_of, misplaced, place

# How busy the machine is fails no test.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wrong := misplaced(items):
        raise pytest.UsageError(f"marked `alone`, which `agentos test` runs in {ALONE} only: {', '.join(wrong)}")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place(file_of(item)))
