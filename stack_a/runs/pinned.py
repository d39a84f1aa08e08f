"""The agent versions that runs pin, remembered: a version is never changed once published."""

from collections import OrderedDict
from typing import Final

from ports.agent import AgentRegistry, AgentSpec
from ports.ids import AgentId, TenantId
from ports.run_state import Run

MAX_REMEMBERED: Final = 512


class PinnedAgents:
    """Shared by the runs of one worker; keeps the versions used last."""

    def __init__(self, registry: AgentRegistry) -> None:
        self._registry = registry
        self._known: OrderedDict[tuple[TenantId, str, AgentId, int], AgentSpec] = OrderedDict()

    async def of(self, run: Run) -> AgentSpec:
        """The spec `run` started with. Raises what the registry raises."""
        key = (run.tenant, run.requester.namespace, run.agent_id, run.agent_version)
        if (spec := self._known.get(key)) is None:
            spec = (await self._registry.get(run.requester, run.agent_id, run.agent_version)).spec
            self._known[key] = spec
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return spec
