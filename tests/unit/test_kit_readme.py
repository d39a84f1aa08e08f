"""The example in the kit's README works as printed, outside our repository and without our fixtures."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

README = Path(__file__).parents[2] / "conformance" / "README.md"

# What the example calls `agentos_redis`: the in-process queue under another configuration.
ADAPTER = """
from datetime import datetime, timezone

from msgspec import Struct

from adapters.inproc.queue import SPEC as INPROC, InprocConfig
from adapters.inproc.store import store
from adapters.inproc.tenant import Tenants
from ports.adapter import AdapterSpec
from ports.tenant import Tenant


class RedisConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: str


SPEC = AdapterSpec(
    config=RedisConfig,
    capabilities=lambda config: INPROC.capabilities(InprocConfig(name=config.socket)),
    open=lambda config, given: INPROC.open(InprocConfig(name=config.socket), given),
)


async def entitle(config, tenant, entitlements):
    made = Tenant(id=tenant, name="", status="active", entitlements=entitlements, created_at=datetime.now(timezone.utc))
    store(config.socket).table(Tenants).rows[tenant] = made
"""


def test_the_example_of_the_readme_is_green(pytester: pytest.Pytester) -> None:
    [example] = re.findall(r"```python\n(# tests/test_contract\.py\n.*?)```", README.read_text("utf-8"), re.DOTALL)
    pytester.makepyfile(agentos_redis=ADAPTER, test_contract=example)
    pytester.syspathinsert()

    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--strict-markers", "-W", "error")

    counts = outcome.parseoutcomes()
    assert counts.pop("passed") >= 20
    assert set(counts) <= {"skipped"}


def test_the_readme_names_every_contract() -> None:
    text = README.read_text("utf-8")

    for module, name in re.findall(r"`conformance\.(\w+)\.(\w+Contract)`", text):
        assert hasattr(__import__(f"conformance.{module}", fromlist=[name]), name)
    assert len(re.findall(r"`conformance\.\w+\.\w+Contract`", text)) == 20
