"""What `agentos tenant move` may be told."""

from datetime import timedelta
from pathlib import Path

import pytest

from deploy.cli.main import parser
from deploy.cli.tenant_move import MoveIt
from tests.support.cli import agentos


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AGENTOS_HOME": str(tmp_path), "NO_COLOR": "1"}


def options_of(*arguments: str) -> MoveIt:
    parsed = parser().parse_args(["tenant", "move", "tnt_a", *arguments])
    options = parsed.options(parsed)
    assert isinstance(options, MoveIt)
    return options


def test_without_a_deed_it_looks() -> None:
    assert options_of().deed == "look"
    assert options_of("--to", "eu1").deed == "move"
    assert options_of("--to", "eu1", "--dry-run").deed == "plan"
    assert options_of("--abort").deed == "abort"
    assert options_of("--clear").grace == timedelta(days=1)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--dry-run",), "--dry-run goes with --to"),
        (("--to", "eu1", "--freeze-seconds", "0"), "--freeze-seconds must be above 0"),
        (("--to", "eu1", "--freeze-seconds", "61"), "at most 60"),
        (("--to", "eu1", "--freeze-seconds", "nan"), "--freeze-seconds must be above 0"),
        (("--clear", "--grace-hours", "-1"), "--grace-hours must be from 0"),
        (("--to", "eu1", "--abort"), "not allowed with"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    environ: dict[str, str], arguments: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        said = agentos("tenant", "move", "tnt_a", *arguments, environ=environ)
        code, text = said.code, said.err
    except SystemExit as ended:
        code, text = int(ended.code or 0), capsys.readouterr().err

    assert code == 2
    assert what in text


def test_a_node_that_was_never_set_up_has_no_homes(environ: dict[str, str]) -> None:
    said = agentos("tenant", "move", "tnt_a", environ=environ)

    assert said.code == 3
    assert "agentos up" in said.err
