"""Reports: complete, parseable, named as promised, and free of secrets."""

import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from deploy import credentials, report
from deploy.action import Failed, Recorder, exclusive
from deploy.config import Config
from deploy.node import Node
from deploy.report import Check, Report
from ports.errors import Conflict, Unavailable
from tests.support.cli import Silent

KEY = "aos_demo_" + "0" * 32 + "_" + "f" * 64


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node.locate({"AGENTOS_HOME": str(tmp_path / "home")})
    made.create()
    return made


@pytest.fixture
def recorder(node: Node) -> Recorder:
    return Recorder("validate", node, Config(), Silent())


class TestFiles:
    def test_both_files_are_named_by_action_and_time(self, recorder: Recorder) -> None:
        made, written = recorder.finish()

        assert re.fullmatch(r"validate-\d{8}-\d{6}\.md", written.markdown.name)
        assert written.json.stem == written.markdown.stem
        assert msgspec.json.decode(written.json.read_bytes(), type=Report) == made

    def test_two_reports_of_one_second_do_not_overwrite_each_other(self, node: Node, recorder: Recorder) -> None:
        made, first = recorder.finish()

        second = report.write(made, node.reports)

        assert first.json != second.json
        assert first.markdown.exists()
        assert second.markdown.exists()

    def test_the_time_in_the_name_is_utc(self, node: Node, recorder: Recorder) -> None:
        made, _ = recorder.finish()
        moved = msgspec.structs.replace(made, finished_at=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))

        assert report.write(moved, node.reports).json.name == "validate-20260304-050607.json"


class TestSecrets:
    @pytest.mark.parametrize(
        "secret",
        [KEY, "sk-abcdefghijkl", "eyJhbGciOi.eyJzdWIi.c2ln", "ao_app:hunter2"],
    )
    def test_what_looks_like_a_secret_is_taken_out(self, secret: str) -> None:
        text = f"connect postgresql://{secret}@host/db" if ":" in secret else f"Bearer {secret}."

        assert secret not in report.scrub(text)

    def test_a_generated_password_never_reaches_a_report(self, node: Node, recorder: Recorder) -> None:
        password = credentials.database_passwords(node).app
        recorder.check(
            Check(name="x", part="p", ok=False, detail=f"bad {password}", log_tail=(f"line with {password}", KEY))
        )

        _, written = recorder.finish()

        for path in (written.markdown, written.json):
            text = path.read_text()
            assert password not in text
            assert KEY not in text

    def test_our_own_ids_are_left_alone(self) -> None:
        text = "run_0198 of agt_demo in tnt_demo, see http://127.0.0.1:8080/v1/runs"

        assert report.scrub(text) == text


class TestPhases:
    def test_a_phase_that_fails_ends_the_action_with_its_check(self, recorder: Recorder) -> None:
        with pytest.raises(Failed), recorder.phase("boot"):
            raise Unavailable("the disk is gone")

        assert not recorder.ok
        assert [(phase.name, phase.ok, phase.summary) for phase in recorder.phases] == [
            ("boot", False, "the disk is gone")
        ]
        assert [(check.part, check.detail) for check in recorder.checks] == [("boot", "the disk is gone")]

    def test_an_error_of_the_machine_is_told_with_its_phase(self, recorder: Recorder) -> None:
        with pytest.raises(Failed), recorder.phase("seed"):
            raise PermissionError(13, "Permission denied")

        assert recorder.checks[0].detail.startswith("PermissionError: ")

    def test_an_interrupted_phase_is_not_reported_as_done(self, recorder: Recorder) -> None:
        with pytest.raises(KeyboardInterrupt), recorder.phase("wire"):
            raise KeyboardInterrupt

        assert [(phase.ok, phase.summary) for phase in recorder.phases] == [(False, "interrupted")]

    def test_a_failed_check_that_was_recorded_is_recorded_once(self, recorder: Recorder) -> None:
        with pytest.raises(Failed), recorder.phase("preflight"):
            raise Failed(recorder.check(Check(name="disk", part="machine", ok=False, detail="full")))

        assert len(recorder.checks) == 1

    def test_a_skipped_check_is_neither_passed_nor_failed(self, recorder: Recorder) -> None:
        recorder.check(Check(name="run", part="smoke", ok=False, skipped=True, detail="no agent"))

        made, _ = recorder.finish()

        assert made.ok
        assert "| run | smoke | skipped |" in report.markdown(made)

    def test_the_report_for_people_names_the_failure_its_log_and_the_next_command(self, recorder: Recorder) -> None:
        recorder.check(
            Check(
                name="stack-b is ready",
                part="stack-b",
                ok=False,
                detail="nothing listens",
                log_tail=("last words",),
                next_command="./agentos logs stack-b",
            )
        )

        made, _ = recorder.finish()
        text = report.markdown(made)

        assert "### stack-b is ready (stack-b)" in text
        assert "last words" in text
        assert "Next: `./agentos logs stack-b`" in text
        assert made.remediation == ("stack-b: ./agentos logs stack-b",)


class TestLock:
    def test_two_actions_can_not_change_a_node_at_once(self, node: Node) -> None:
        with exclusive(node), pytest.raises(Conflict, match="is changing the node"), exclusive(node):
            raise AssertionError("the second got in")

    def test_the_lock_is_free_again_afterwards(self, node: Node) -> None:
        with exclusive(node):
            pass

        with exclusive(node):
            pass
