"""What a surface serves is compared with what it declares, so the comparison must see it."""

from collections.abc import Callable

import pytest
from litestar import Litestar, get, post
from litestar.params import FromPath

from deploy import admin_surface
from stack_a import app as stack_a


@get("/v1/things/{thing:str}")
async def read(thing: FromPath[str]) -> None:
    del thing


@post("/v1/things/{thing:str}/:end")
async def end(thing: FromPath[str]) -> None:
    del thing


@pytest.mark.parametrize("served", [stack_a._served, admin_surface._served], ids=["a", "admin"])
def test_every_route_of_the_framework_is_seen_by_its_public_path(
    served: Callable[[Litestar], list[tuple[str, str]]],
) -> None:
    app = Litestar(route_handlers=[read, end], openapi_config=None)

    assert set(served(app)) == {("GET", "/v1/things/{thing}"), ("POST", "/v1/things/{thing}:end")}
