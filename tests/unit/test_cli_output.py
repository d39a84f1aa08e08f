"""What tenants, models and tools say is text on an operator's terminal, whatever is in it."""

import io
import json

import pytest

from deploy.cli.io import Io, harmless

CLEARS, RENAMES, TURNS, C1 = "\x1b[2J", "\x1b]0;root\x07", "\u202eevil\u2066", "\x9b31m"
SAID = f"a{CLEARS}b{RENAMES}c{TURNS}d{C1}e\rf\x7f"


def written(out: io.StringIO) -> str:
    return out.getvalue()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def terminal(out: io.StringIO) -> Io:
    return Io(out=out, err=out, environ={})


def obeyed(text: str) -> set[str]:
    return set(text) & set("\x1b\x07\u202e\u2066\x9b\r\x7f")


def test_a_cell_of_a_table_moves_nothing_and_makes_no_row(terminal: Io, out: io.StringIO) -> None:
    terminal.columns(("LABEL",), [(SAID + "\nkey_fake  admin",)])

    assert not obeyed(written(out))
    assert written(out).count("\n") == 2
    assert "key_fake  admin" in written(out)


def test_a_line_or_a_remark_moves_nothing(terminal: Io, out: io.StringIO) -> None:
    terminal.data().print(SAID, markup=False)
    terminal.data().print(f"[bold]output[/] {SAID}")
    terminal.say(SAID)

    assert not obeyed(written(out))
    assert written(out).count("a\ufffd[2Jb") == 3


def test_json_says_the_same_with_escapes(terminal: Io, out: io.StringIO) -> None:
    terminal.json({"label": SAID})

    assert not obeyed(written(out))
    assert json.loads(written(out)) == {"label": SAID}


def test_lines_of_an_answer_and_other_letters_stay() -> None:
    assert harmless("eins\n\tzwei: Grüße, שלום, 你好 👩\u200d💻") == "eins\n\tzwei: Grüße, שלום, 你好 👩\u200d💻"
