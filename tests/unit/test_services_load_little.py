"""What a service loads is what it uses, whatever else is installed."""

import os
import subprocess
import sys

import pytest

from tests.support.node import ROOT

WORKER = "stack_a.app import create_worker_app as app; app({}, Metrics())"
ADMIN = "deploy.admin_surface import create_admin_app as app; app((), verifier=None, probes={}, metrics=Metrics())"


@pytest.mark.parametrize("made", [WORKER, ADMIN], ids=["worker", "admin"])
def test_an_app_loads_no_library_of_others(made: str) -> None:
    program = f"import sys; from observability.metrics import Metrics; from {made}; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()

    assert "litestar" in loaded
    assert not {"pydantic", "attrs"} & set(loaded)
