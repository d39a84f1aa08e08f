"""Litestar without what it adds by itself for libraries that happen to be installed."""

from litestar import Litestar
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin


class BareLitestar(Litestar):
    """Speaks msgspec only, as we do.

    Where Pydantic is installed, as LiteLLM needs it, Litestar would load it: an eighth of a service's start, and 10 MB of
    each service that never uses it.
    """

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]
