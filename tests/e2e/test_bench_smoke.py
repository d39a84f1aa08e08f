"""The benches run and find every figure. What they find in a few seconds says nothing."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.bench.__main__ import BENCHES, says
from tests.bench.harness import Record
from tests.bench.machine import ROOT, can_be_apart


@pytest.mark.parametrize(
    ("bench", "figures"),
    [
        (
            "audit",
            {"noted_one", "noted_many", "noted_alone", "runs_one", "runs_one_share", "runs_many_share", "verified"},
        ),
        (
            "isolation",
            {"created_both", "created_audit", "created_share", "created_cpu_ratio", "read_share", "read_bare"},
        ),
        ("engine", {"runs_per_s", "commits_per_run", "claim_p50_ms", "claim_p99_ms", "worker_cpu_ms", "ratio"}),
        ("engine_dbos", {"ours_4_1", "ours_4_1_cpu_ms", "ours_4_1_server_ms", "ours_4_1_writes"}),
        ("events", {"p50_ms_1", "p99_ms_100", "p99_ms_fan", "cpu_us_fan", "mib_per_1000", "reference_p50_ms", "ratio"}),
        ("fairness", {"idle_p95_ms", "beside_p95_ms", "capped_p95_ms", "lease_ratio", "create_racing_per_s"}),
        ("scale", {"tenants_3_cpu_ratio", "finished_50_cpu_ratio", "again_cpu_ratio", "finished_50_time_ratio"}),
        ("waiting", {"api_mib", "worker_mib", "tables_mib_per_1000"}),
        (
            "gateway",
            {
                "gateway_rps_16",
                "gateway_p99_ms_1",
                "gateway_cpu_us_16",
                "gateway_first_ms_beside",
                "chunks_ratio",
                "personal_rps",
            }
            | ({"gateway_p99_ms_apart", "gateway_first_ms_apart"} if can_be_apart() else set()),
        ),
    ],
)
def test_a_smoke_run_measures_everything_beside_its_reference(bench: str, figures: set[str], tmp_path: Path) -> None:
    written = tmp_path / "record.json"

    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{bench}", "--smoke", "--json", str(written)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    record = msgspec.json.decode(written.read_bytes(), type=Record)
    assert figures <= record.medians.keys()
    assert all(value > 0 for name, value in record.medians.items() if name in figures)
    assert record.conditions["postgres"]["fsync"] == "on"
    assert f"{bench}: medians of 1 interleaved rounds" in done.stdout
    assert all(sentence in " ".join(done.stdout.split()) for sentence in record.missing)


def test_every_bench_is_listed_with_what_it_says() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "tests.bench"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout

    modules = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "bench").glob("*.py")}
    runnable = {name for name, text in modules.items() if 'if __name__ == "__main__":' in text}
    assert set(BENCHES) == {name for name in runnable if "from tests.bench.harness import" in modules[name]}
    assert all(f"tests.bench.{bench} " in listed and says(bench) for bench in BENCHES)
