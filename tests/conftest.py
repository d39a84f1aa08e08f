"""What every test has: the asyncio backend for anyio's plugin; and the order of files between processes."""

import gc
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.order import ALONE, file_of, misplaced, place, turned

# How busy the machine is fails no test.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is read here stays: the collector of cycles needn't look at it, neither while it is made nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of several processes each begins to read elsewhere: what one has compiled the others find."""
    report = yield
    worker = getattr(collector.config, "workerinput", None)
    if worker and isinstance(collector, pytest.Directory):
        number, of = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        report.result = turned(report.result, number, of)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wrong := misplaced(items):
        raise pytest.UsageError(f"marked `alone`, which `agentos test` runs in {ALONE} only: {', '.join(wrong)}")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (place(file_of(item)), file_of(item)))
