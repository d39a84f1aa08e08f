"""How the kit's tests run over broken adapters: each in one step, on an event loop of its own.

pytest collects, parametrises and reports them as ever. What it does in between, for fixtures of any kind and scope, costs
more than such a test itself, and there are 45,000 of them. They need one fixture, `harness`: here it is made, used and
closed in one go. What fails in any of this fails the test, as do errors of callbacks and, by pytest's own means, warnings
and what nobody could raise. A plugin, for `-p` with the plugin `logging` off; without it the tests run as any others.
"""

import asyncio
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
from anyio.pytest_plugin import extract_backend_and_options


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Literal[True]:
    step(item, "call", lambda: item.ihook.pytest_runtest_call(item=item))
    step(item, "teardown", lambda: item.ihook.pytest_runtest_teardown(item=item, nextitem=nextitem))
    return True


def step(item: pytest.Item, when: Literal["call", "teardown"], hook: Callable[[], None]) -> None:
    call = pytest.CallInfo.from_call(hook, when=when)
    if when == "call" or call.excinfo is not None:
        item.ihook.pytest_runtest_logreport(report=item.ihook.pytest_runtest_makereport(item=item, call=call))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Literal[True]:
    failed: list[Exception] = []

    def noted(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), Exception):
            failed.append(context["exception"])
        else:
            loop.default_exception_handler(context)

    _, options = extract_backend_and_options(fixture(pyfuncitem, "anyio_backend", {}))
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(**options) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(noted)
        try:
            loop.run_until_complete(tested(pyfuncitem, {"monkeypatch": patch}))
        except BaseException as error:
            # What a failed test held goes with it, not when the next ones make Python look for garbage: a coroutine that
            # was never awaited would be theirs.
            traceback.clear_frames(error.__traceback__)
            raise
    if failed:
        raise ExceptionGroup("in callbacks", failed)
    return True


async def tested(item: pytest.Function, given: Mapping[str, object]) -> None:
    """What the function of a fixture yields is closed whatever the test did to it."""
    harness = fixture(item, "harness", given)
    generated = inspect.isasyncgen(harness)
    try:
        opened = await anext(harness) if generated else harness
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        known = {**given, **parameters, "harness": opened}
        await item.obj(**{name: known[name] for name in item._fixtureinfo.argnames})
    finally:
        if generated:
            await anext(harness, None)


def fixture(item: pytest.Function, name: str, given: Mapping[str, object]) -> Any:  # whatever the fixture gives
    """What the function behind a fixture of the test's class returns; it may ask for what is `given`."""
    found = item._fixtureinfo.name2fixturedefs[name][-1]  # nothing public says it: anyio's plugin looks here as well
    assert inspect.ismethod(found.func), f"{name} is no fixture of {item.cls}"
    return found.func.__func__(item.instance, **{one: given[one] for one in found.argnames})
