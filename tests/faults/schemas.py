"""R16 of every surface: what OpenAPI documents allow and what they don't: `python -m tests.faults.schemas --minutes 10`.

The three services as processes over PostgreSQL, and schemathesis before each of them, in all phases: examples, coverage,
fuzzing and stateful sequences. No answer is a 5xx, and every one is what the document says: status, headers, media type,
schema; credentials are asked for where they must be, and what is gone is gone. One record is printed.

One check is left out: that whatever a schema allows is accepted. Bodies have rules that no schema says, such as the names
of models and tools that exist; and a configuration of the gateway is checked by its meaning.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
from msgspec import Struct

from tests.faults.reconcile import Record, record
from tests.faults.schemas_rig import Services, services
from tests.support.real_stacks import ROOT

LEFT_OUT: Final = "positive_data_acceptance"
MAX_GROWTH_MB: Final = 50.0
FEWEST_CASES: Final = 40
"""Of a surface: a run that sent less proves nothing. In half a minute a slow and busy machine sends that much."""


class Sent(Struct, frozen=True, kw_only=True):
    surface: str
    cases: int
    failures: list[str]
    growth_mb: float
    phases: str


async def drive(seconds: int, seed: int) -> Record:
    with tempfile.TemporaryDirectory(prefix="agentos-schemas-") as home:
        async with services(Path(home)) as node:
            found = await asyncio.gather(*(_sent(node, surface, Path(home), seconds, seed) for surface in node.tokens))
            dead = [surface for surface, process in node.processes.items() if not psutil.pid_exists(process.pid)]
    return record(
        "R16",
        {
            "failures": sum(len(one.failures) for one in found),
            "growth_mb": max(one.growth_mb for one in found),
            "dead": len(dead),
            "few_cases": sum(one.cases < FEWEST_CASES for one in found),
        },
        limits={"growth_mb": MAX_GROWTH_MB},
        seed=seed,
        cases=sum(one.cases for one in found),
        by_surface=", ".join(f"{one.surface}={one.cases}" for one in found),
        phases=", ".join(f"{one.surface}: {one.phases}" for one in found),
        examples=[f"{one.surface}: {failure}" for one in found for failure in one.failures[:10]],
    )


async def _sent(node: Services, surface: str, home: Path, seconds: int, seed: int) -> Sent:
    process, report = node.processes[surface], home / f"{surface}.json"
    before = _memory_mb(process.pid)
    ran = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "schemathesis"), "run", f"{process.url}/openapi.json",
        "--header", f"Authorization: Bearer {node.tokens[surface]}",
        "--max-time", str(seconds), "--seed", str(seed), "--exclude-checks", LEFT_OUT, "--continue-on-failure",
        "--suppress-health-check", "all", "--generation-database", "none", "--generation-allow-x00", "true",
        "--no-color", "--report-json-path", str(report),
        cwd=home, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.faults.schemas_hooks",
            "SCHEMAS_RUN_ID": node.run_id,
        },
    )  # fmt: skip
    said, _ = await ran.communicate()
    return _read(surface, report, said.decode(errors="replace"), _memory_mb(process.pid) - before)


def _memory_mb(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def _read(surface: str, report: Path, said: str, growth_mb: float) -> Sent:
    """What schemathesis reports; that it has no report is a failure."""
    try:
        found: dict[str, Any] = json.loads(report.read_bytes())
    except (OSError, ValueError):
        return Sent(surface=surface, cases=0, failures=[said[-2_000:]], growth_mb=growth_mb, phases="none")
    failures = [json.dumps(one)[:1_000] for one in (*found["failures"], *found["errors"])]
    if failures:
        # The report says what kind, the requests themselves are in the talk.
        failures += [line.strip()[:2_000] for line in said.splitlines() if line.strip().startswith("curl ")]
    if not failures and found["exit_code"]:
        failures = [said[-2_000:]]
    phases = "/".join(f"{name} {one['status']}" for name, one in found["phases"].items())
    generated = found["test_cases"]["generated"]
    return Sent(surface=surface, cases=generated, failures=failures, growth_mb=round(growth_mb, 1), phases=phases)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.schemas", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all surfaces at once, about (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the same choices; drawn when not given")
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    found = asyncio.run(drive(max(1, round(given.minutes * 60)), seed))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
