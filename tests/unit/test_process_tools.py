"""One command at a time: what it gets, what is made of its answer, and that nothing of it is left."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import anyio
import psutil
import pytest
import uvloop
from msgspec.structs import replace

from adapters.process_tools import command, port
from adapters.process_tools.command import Ended
from adapters.process_tools.declared import DeclaredTool, read_tools
from adapters.process_tools.port import ProcessTools, ProcessToolsConfig, judged, told
from conformance.clock import ManualClock
from conformance.people import ACME
from conformance.tool import TIMEOUT
from ports.adapter import Given
from ports.errors import AgentOSError, InvalidArgument
from ports.tool import ToolCall, ToolPort
from tests.support.command_tools import NO_ARGUMENTS, alive, declared, takes, written

NAP: Final = f"61.{os.getpid()}"
"""Seconds that nobody else sleeps."""

LOOPS: Final = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop"),
]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The services run on uvloop, which starts processes in its own way."""
    return request.param


async def ran(script: str, *, within: float = 20, document: bytes = b"{}", grace: float = 2) -> Ended | None:
    """A shell's script as a command; None when its time was over."""
    argv = ["/bin/sh", "-c", script]
    with anyio.fail_after(30), anyio.move_on_after(within):
        return await command.run(argv, document, environ=os.environ, max_output=1_000, grace=grace)
    return None


@pytest.mark.anyio
class TestRun:
    async def test_it_reads_its_document_and_answers_in_a_directory_of_its_own(self) -> None:
        first = await ran("cat; pwd; ls -A | wc -l; touch left", document=b'{"a": 1}\n')
        second = await ran("cat; pwd; ls -A | wc -l", document=b'{"a": 1}\n')

        assert first is not None
        assert second is not None
        document, home, files = first.output.decode().splitlines()
        assert (first.code, document, files.strip()) == (0, '{"a": 1}', "0")
        assert home != second.output.decode().splitlines()[1]
        assert not await anyio.Path(home).exists()

    async def test_nothing_of_ours_reaches_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTOS_DATABASE_URL_FILE", "/secret")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)

        ended = await ran("env | cut -d= -f1 | sort; ls /dev/fd/ >&2")

        os.close(reading)
        os.close(writing)
        assert ended is not None
        assert set(ended.output.decode().split()) <= {"HOME", "LANG", "LC_ALL", "PATH", "PWD", "TMPDIR", "TZ"}
        # The fourth is of `ls` itself.
        assert len(ended.stderr.split()) == 4

    async def test_signals_are_as_a_program_expects_them(self) -> None:
        ended = await ran("cat /proc/self/status")

        assert ended is not None
        masks = dict(line.split(":\t") for line in ended.output.decode().splitlines() if line.startswith("Sig"))
        assert (int(masks["SigIgn"], 16), int(masks["SigBlk"], 16)) == (0, 0)

    async def test_a_command_that_writes_without_end_neither_waits_nor_fills_the_memory(self) -> None:
        before = psutil.Process().memory_info().rss

        ended = await ran("head -c 200000000 /dev/zero; head -c 100000000 /dev/zero >&2")

        assert ended is not None
        assert (ended.code, ended.size, len(ended.output)) == (0, 200_000_000, 1_000)
        assert len(ended.stderr) == command.MAX_STDERR_BYTES
        assert psutil.Process().memory_info().rss - before < 50_000_000

    async def test_a_command_that_does_not_read_its_document_is_not_waited_for(self) -> None:
        ended = await ran("exec <&-; echo done", document=b"x" * 5_000_000)

        assert ended is not None
        assert ended.output == b"done\n"

    @pytest.mark.parametrize(
        "script",
        [
            f"sleep {NAP}; true",
            f"sleep {NAP} & sleep {NAP}",
            f"trap '' TERM; sleep {NAP} & sleep {NAP}; sleep {NAP}",
            f"trap '' TERM; (trap '' TERM; sleep {NAP} </dev/null >/dev/null 2>&1 &) ; sleep {NAP}; sleep {NAP}",
        ],
        ids=["one", "a child beside it", "deaf to SIGTERM", "a grandchild without its streams"],
    )
    async def test_nothing_is_left_of_one_that_takes_too_long(self, script: str) -> None:
        ended = await ran(script, within=0.5, grace=0.2)

        assert ended is None
        assert sleeping() == []

    async def test_what_it_left_running_ends_with_it(self) -> None:
        ended = await ran(f"sleep {NAP} & echo answered")

        assert ended is not None
        assert ended.output == b"answered\n"
        assert sleeping() == []

    async def test_children_of_a_shell_that_ended_have_the_time_to_tidy_up(self, tmp_path: Path) -> None:
        # The shell ends on SIGTERM; its child needs a while.
        child = f"sh -c 'trap \"sleep 0.3; touch {tmp_path}/tidied; exit\" TERM; sleep {NAP} & wait'"

        await ran(f"{child} & wait", within=1.5)

        assert (tmp_path / "tidied").exists()
        assert sleeping() == []

    async def test_a_program_that_waits_for_all_its_children_has_none_of_ours(self) -> None:
        waiting = "import os\ntry:\n os.wait()\nexcept ChildProcessError:\n print('none')"

        ended = await ran(f'exec {sys.executable} -I -c "{waiting}"', within=5)

        assert ended is not None
        assert ended.output == b"none\n"


def sleeping() -> list[int]:
    """The naps of these tests that are not over."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["cmdline"] == ["sleep", NAP] and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


TOOL: Final = DeclaredTool(
    name="t", description="t", input_schema=NO_ARGUMENTS, effect="pure", command=("/bin/true",), max_output_bytes=20
)


class TestJudged:
    def test_an_answer_is_one_json_value(self) -> None:
        assert judged(TOOL, Ended(code=0, output=b' {"a": [1, null]}\n', size=18, stderr=b"noise")) == {"a": [1, None]}

    @pytest.mark.parametrize(
        ("ended", "code", "says"),
        [
            (
                Ended(code=3, output=b"1", size=1, stderr=b"no such order\n"),
                "tool_failed",
                "t exited with 3: no such order",
            ),
            (Ended(code=1, output=b"", size=0, stderr=b""), "tool_failed", "t exited with 1"),
            (Ended(code=-11, output=b"", size=0, stderr=b""), "tool_failed", "t was ended by SIGSEGV"),
            (Ended(code=0, output=b"1" * 20, size=21, stderr=b""), "tool_response_too_large", "answered 21 bytes"),
            (Ended(code=0, output=b"[1e15,1e15]", size=11, stderr=b""), "tool_response_too_large", "at most 20"),
            (Ended(code=0, output=b"", size=0, stderr=b""), "tool_bad_output", "not usable JSON"),
            (Ended(code=0, output=b"done", size=4, stderr=b""), "tool_bad_output", "not usable JSON"),
            (Ended(code=0, output=b"1 2", size=3, stderr=b""), "tool_bad_output", "not usable JSON"),
            (Ended(code=0, output=b"NaN", size=3, stderr=b""), "tool_bad_output", "NaN"),
        ],
    )
    def test_what_is_no_answer_is_told_with_its_reason(self, ended: Ended, code: str, says: str) -> None:
        with pytest.raises(AgentOSError) as refusal:
            judged(TOOL, ended)

        assert refusal.value.code == code
        assert says in refusal.value.message

    def test_what_it_said_is_one_harmless_line(self) -> None:
        assert told(b"\x1b[31mno\x1b[0m\r\n\tsuch\x00 \xff order\x07\n") == "no such order"

    def test_of_much_the_end_is_told(self) -> None:
        said = told(b"begin " + b"x" * 1_000 + b" end")

        assert (len(said), said[0], said[-4:]) == (port.MAX_TOLD_CHARS + 1, "…", " end")


def tools_of(file: Path) -> ToolPort:
    return ProcessTools(read_tools(file, search=os.environ["PATH"]), environ=os.environ, grace_s=2)


@pytest.mark.anyio
class TestPort:
    async def test_a_command_is_told_for_whom_and_under_which_key(self, tmp_path: Path) -> None:
        entry = declared("echo", "", tmp_path, command=["cat"], input_schema=takes(text="string"))
        tools = tools_of(written(tmp_path / "tools.json", entry))

        call = ToolCall(name="echo", arguments={"text": "tea ☕"}, key="run_1:2")
        result = await tools.invoke(ACME, call, timeout=TIMEOUT)

        assert result.output == {
            "tool": "echo",
            "arguments": {"text": "tea ☕"},
            "key": "run_1:2",
            "tenant": ACME.tenant,
            "namespace": ACME.namespace,
            "principal": ACME.principal,
        }

    @pytest.mark.parametrize("answer", ['{"acted": 1}', '{"acted": true}', '{"acted": false, "output": 1}', "null"])
    async def test_an_answer_of_reconcile_that_is_none_is_refused(self, tmp_path: Path, answer: str) -> None:
        entry = declared("send", "", tmp_path, reconcile=["sh", "-c", f"echo '{answer}'"])
        tools = tools_of(written(tmp_path / "tools.json", entry))

        with pytest.raises(AgentOSError) as refusal:
            await tools.reconcile(ACME, "send", "run_1:2")

        assert refusal.value.code == "tool_bad_output"

    async def test_a_program_that_is_gone_is_a_failed_tool(self, tmp_path: Path) -> None:
        tools = ProcessTools([replace(TOOL, command=("/no/such/program",))], environ=os.environ, grace_s=2)

        with pytest.raises(AgentOSError, match="can't be started") as refusal:
            await tools.invoke(ACME, ToolCall(name="t", arguments={}, key="k"), timeout=TIMEOUT)

        assert refusal.value.code == "tool_failed"
        assert alive(tmp_path) == []


GOOD: Final[dict[str, Any]] = {
    "name": "t", "description": "d", "input_schema": NO_ARGUMENTS, "effect": "pure", "command": ["sh"]
}  # fmt: skip


class TestFile:
    def test_paths_beside_the_file_and_programs_of_the_path_become_whole(self, tmp_path: Path) -> None:
        file = written(tmp_path / "tools.json", {**GOOD, "command": ["sh", "./look.sh", "../x", "-v"]})

        [tool] = read_tools(file, search="/usr/bin:/bin")

        program, *arguments = tool.command
        assert (Path(program).is_absolute(), Path(program).name) == (True, "sh")
        assert arguments == [f"{tmp_path}/look.sh", "../x", "-v"]

    @pytest.mark.parametrize(
        ("entries", "says"),
        [
            ([{**GOOD, "name": "No"}], "$.tools[0].name"),
            ([{**GOOD, "colour": "red"}], "`colour`"),
            ([GOOD, {**GOOD, "effect": "transactional"}], "$.tools[1].effect"),
            ([{**GOOD, "command": []}], "$.tools[0].command"),
            ([{**GOOD, "command": "sh -c x"}], "Expected `array`, got `str` - at `$.tools[0].command`"),
            ([{**GOOD, "command": ["./gone"]}], "$.tools[0].command: there is no program './gone'"),
            ([{**GOOD, "reconcile": ["no-such-program"]}], "$.tools[0].reconcile: there is no program"),
            ([{**GOOD, "timeout_s": 0}], "$.tools[0].timeout_s"),
            ([{**GOOD, "scopes": []}], "$.tools[0].scopes"),
            ([{**GOOD, "max_output_bytes": 10**9}], "$.tools[0].max_output_bytes"),
            ([{**GOOD, "input_schema": {"type": "object"}}], "$.tools[0].input_schema: must have"),
            ([{**GOOD, "input_schema": {**NO_ARGUMENTS, "properties": {"a": 1}}}], "input_schema.properties.a"),
            ([{**GOOD, "input_schema": {**NO_ARGUMENTS, "properties": {"a": {"$ref": "http://x/y"}}}}], "http://x/y"),
            ([GOOD, GOOD], "$.tools[1].name: 't' is declared twice"),
        ],
    )  # fmt: skip
    def test_a_file_that_can_not_be_used_is_refused_with_the_place(
        self, tmp_path: Path, entries: list[Any], says: str
    ) -> None:
        file = written(tmp_path / "tools.json", *entries)

        with pytest.raises(InvalidArgument) as refusal:
            read_tools(file, search="/usr/bin:/bin")

        assert says in refusal.value.message
        assert refusal.value.message.startswith(f"{file}: ")
        assert "docs/tools.md" in refusal.value.message

    def test_a_slip_in_the_json_is_told_with_its_line(self, tmp_path: Path) -> None:
        file = tmp_path / "tools.json"
        file.write_text('{"tools": [\n  {"name": "t",}\n]}')

        with pytest.raises(InvalidArgument, match="line 2 column 16"):
            read_tools(file)

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="can't be read: No such file"):
            read_tools(tmp_path / "gone.json")

    @pytest.mark.anyio
    async def test_the_adapter_reads_the_file_it_is_given(self, tmp_path: Path) -> None:
        file = written(tmp_path / "tools.json", {**GOOD, "name": "b"}, {**GOOD, "name": "a", "timeout_s": 1.5})

        async with port.SPEC.open(ProcessToolsConfig(file=str(file)), Given(clock=ManualClock())) as tools:
            specs = await tools.list_tools(ACME)

        assert [(spec.name, spec.timeout.total_seconds()) for spec in specs] == [("a", 1.5), ("b", 30.0)]
        assert json.loads(file.read_text())["tools"][0]["name"] == "b"
