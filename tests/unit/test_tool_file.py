"""Declared commands beside the built-in tools: how a node is told of them, and what is refused before it starts."""

from pathlib import Path
from typing import Final

import pytest

from adapters import joined_tools
from adapters.inproc.tool import InprocTools
from adapters.joined_tools import JoinedTools, JoinedToolsConfig, Part
from conformance.clock import ManualClock
from conformance.people import ACME
from conformance.tool import TIMEOUT
from deploy import config, tool_file
from deploy.catalogue import catalogue
from deploy.config import Config
from deploy.node import Node
from deploy.roots.tools import tools_of_a_node
from deploy.seed import TOOLS
from ports.adapter import Given
from ports.errors import InvalidArgument, NotFound, Unsupported
from ports.tool import ToolCall
from tests.support.cli import agentos
from tests.support.command_tools import declared, written
from tests.support.inproc_tools import ADD, FLOOD

ENVIRON: Final = {"PATH": "/usr/bin:/bin"}


def settings(file: Path | str) -> Config:
    return config.resolve({"tools_file": str(file)}, {}).config


class TestFileOfANode:
    def test_agents_may_use_what_is_declared_beside_what_is_built_in(self, tmp_path: Path) -> None:
        file = written(tmp_path / "tools.json", declared("weigh", "", tmp_path))

        assert tool_file.offered(settings(file), ENVIRON) == (*TOOLS, "weigh")
        assert tool_file.offered(Config(), ENVIRON) == TOOLS
        assert tool_file.problems(settings(file), ENVIRON) == []
        assert tool_file.problems(Config(), ENVIRON) == []

    def test_a_built_in_tool_keeps_its_name(self, tmp_path: Path) -> None:
        file = written(tmp_path / "tools.json", declared("clock", "", tmp_path))

        [problem] = tool_file.problems(settings(file), ENVIRON)

        assert problem == f"AGENTOS_TOOLS_FILE: {file}: clock is the name of a built-in tool; choose another"

    def test_a_path_that_depends_on_where_one_stands_is_refused(self) -> None:
        [problem] = tool_file.problems(settings("tools.json"), ENVIRON)

        assert problem == "AGENTOS_TOOLS_FILE must be an absolute path, not 'tools.json'"

    def test_what_a_worker_would_refuse_is_told_with_its_place(self, tmp_path: Path) -> None:
        file = written(tmp_path / "tools.json", declared("weigh", "", tmp_path, command=["./weigh"]))

        [problem] = tool_file.problems(settings(file), ENVIRON)

        assert problem.startswith(f"AGENTOS_TOOLS_FILE: {file}: $.tools[0].command: there is no program './weigh'")

    def test_only_the_worker_is_told_and_a_changed_file_makes_it_another_service(self, tmp_path: Path) -> None:
        node = Node.locate({"AGENTOS_HOME": str(tmp_path / "node")})
        file = written(tmp_path / "tools.json", declared("weigh", "", tmp_path))

        before = {one.name: one.environment for one in catalogue(node, settings(file), ENVIRON)}
        written(file, declared("weigh", "", tmp_path, effect="unsafe"))
        after = {one.name: one.environment for one in catalogue(node, settings(file), ENVIRON)}

        assert [name for name, own in after.items() if own.get("AGENTOS_TOOLS_FILE") == str(file)] == ["stack-a-worker"]
        assert [name for name in before if before[name] != after[name]] == ["stack-a-worker"]


class TestCommands:
    @pytest.fixture
    def environ(self, tmp_path: Path) -> dict[str, str]:
        """A node whose file of tools has a slip in it."""
        home = tmp_path / "node"
        home.mkdir()
        file = tmp_path / "tools.json"
        file.write_text('{"tools": [\n{"name": "weigh",}\n]}')
        (home / ".agentos.env").write_text(f"AGENTOS_TOOLS_FILE={file}\n")
        return {**ENVIRON, "AGENTOS_HOME": str(home)}

    @pytest.mark.parametrize("command", ["up", "redeploy"])
    def test_a_slip_in_the_file_is_told_before_anything_is_touched(self, environ: dict[str, str], command: str) -> None:
        said = agentos(command, environ=environ)

        assert said.code != 0
        assert "AGENTOS_TOOLS_FILE: " in said.err
        assert "line 2" in said.err
        assert sorted(path.name for path in Path(environ["AGENTOS_HOME"]).iterdir()) == [".agentos.env"]

    def test_the_setting_is_explained_with_what_is_wrong(self, environ: dict[str, str]) -> None:
        said = agentos("config", "explain", environ=environ)

        assert said.code == 1
        assert "Commands that agents may use as tools" in said.out
        assert "line 2" in said.err


GIVEN = Given(clock=ManualClock(), ports={"memory": None, "egress": None})


@pytest.mark.anyio
class TestJoined:
    async def test_a_node_offers_both(self, tmp_path: Path) -> None:
        file = written(tmp_path / "tools.json", declared("weigh", "", tmp_path))
        choice = tools_of_a_node(str(file))
        joined = JoinedToolsConfig(parts=tuple(Part(**part) for part in choice.config["parts"]))

        async with joined_tools.SPEC.open(joined, GIVEN) as tools:
            names = [spec.name for spec in await tools.list_tools(ACME)]
            call = ToolCall(name="calculator", arguments={"expression": "2 + 2"}, key="k")
            result = await tools.invoke(ACME, call, timeout=TIMEOUT)

        assert choice.adapter == "joined"
        assert names == sorted((*TOOLS, "weigh"))
        assert result.output["result"] == "4"

    def test_without_a_file_nothing_is_joined(self) -> None:
        assert tools_of_a_node("").adapter == "builtin"

    async def test_two_parts_with_a_tool_of_the_same_name_do_not_open(self, tmp_path: Path) -> None:
        file = written(tmp_path / "tools.json", declared("clock", "", tmp_path))
        joined = JoinedToolsConfig(
            parts=(Part(adapter="builtin"), Part(adapter="commands", config={"file": str(file)}))
        )

        with pytest.raises(InvalidArgument, match="both 'builtin' and 'commands' offer a tool 'clock'"):
            async with joined_tools.SPEC.open(joined, GIVEN):
                pass

    @pytest.mark.parametrize(
        ("part", "says"),
        [
            (Part(adapter="no_such"), "no tool adapter 'no_such' is installed"),
            (Part(adapter="builtin", config={"colour": "red"}), "tool adapter 'builtin', configuration: .*`colour`"),
        ],
    )
    def test_a_part_that_can_not_be_opened_is_refused_before_the_start(self, part: Part, says: str) -> None:
        with pytest.raises(InvalidArgument, match=says):
            joined_tools.SPEC.capabilities(JoinedToolsConfig(parts=(part,)))

    async def test_each_tool_is_asked_where_it_is(self) -> None:
        clock = ManualClock()
        tools = JoinedTools([InprocTools([ADD], clock), InprocTools([FLOOD], clock)])

        assert (await tools.describe(ACME, "flood")).name == "flood"
        with pytest.raises(Unsupported):
            await tools.reconcile(ACME, "flood", "run_1:1")
        with pytest.raises(NotFound, match="there are add, flood"):
            await tools.describe(ACME, "hammer")
