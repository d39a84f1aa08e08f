"""What endpoints may ask for: the request, the ports, and the parameters that several of them share."""

from typing import Annotated, Any, TypeAlias

from litestar import Request
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter, SkipValidation

from ports.context import AuthContext
from ports.run_intake import RunIntake
from ports.run_state import MAX_PAGE
from stack_a.deps import ApiDeps
from stack_a.http.admission import Admission
from stack_a.http.stream import OpenStreams
from stack_a.runs import again, family

HttpRequest: TypeAlias = Request[Any, AuthContext, Any]
Deps: TypeAlias = NamedDependency[SkipValidation[ApiDeps]]
Intake: TypeAlias = NamedDependency[SkipValidation[RunIntake]]
Again: TypeAlias = NamedDependency[SkipValidation[again.Again]]
Family: TypeAlias = NamedDependency[SkipValidation[family.Family]]
Admitted: TypeAlias = NamedDependency[SkipValidation[Admission]]
Streams: TypeAlias = NamedDependency[SkipValidation[OpenStreams]]

PathText: TypeAlias = FromPath[str]
QueryText: TypeAlias = FromQuery[str | None]
Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
Version: TypeAlias = Annotated[int | None, QueryParameter(ge=1, le=2**31 - 1)]
