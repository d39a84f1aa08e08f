"""Route table, trace context, cursors and the error table."""

import pytest

from ports.errors import CODES, AgentOSError, InvalidArgument, from_code
from ports.http import envelope, sse
from ports.http.routes import DENIED, Matched, Route, RouteTable
from ports.http.trace import trace_from

TABLE = RouteTable(
    (
        Route(method="GET", template="/v1/runs", access="runs:read"),
        Route(method="GET", template="/v1/runs/{run_id}", access="runs:read"),
        Route(method="POST", template="/v1/runs/{run_id}:cancel", access="runs:cancel"),
        Route(method="GET", template="/v1/runs/{run_id}/events", access="runs:read"),
    )
)

INSIDE_A_RUN = {
    "fenced", "tool_not_allowed", "tool_bad_arguments", "tool_timeout", "tool_response_too_large", "tool_bad_output",
    "tool_failed", "tool_tls_error", "egress_denied", "max_steps_exceeded", "max_cost_exceeded", "run_timeout",
    "outcome_unknown", "poison", "max_depth_exceeded", "child_failed",
}  # fmt: skip


def matched(method: str, path: str) -> Matched:
    found = TABLE.match(method, path)
    assert isinstance(found, Matched), found
    return found


def test_a_verb_is_matched_apart_from_the_id_and_handed_on_as_its_own_segment() -> None:
    found = matched("POST", "/v1/runs/run_1:cancel")

    assert found.route.template == "/v1/runs/{run_id}:cancel"
    assert found.inner_path == "/v1/runs/run_1/:cancel"


@pytest.mark.parametrize(
    "path",
    ["/v1/run", "/v1/runs/", "/v1/runs/a/b", "/v1/runs/a/:cancel", "/v1/runs/a:other", "//v1/runs", "/V1/runs", ""],
)
def test_other_paths_match_nothing(path: str) -> None:
    assert TABLE.match("GET", path) is None


def test_a_known_path_tells_which_methods_it_takes() -> None:
    assert TABLE.match("DELETE", "/v1/runs") == ("GET",)


def test_a_served_route_that_was_not_declared_is_denied() -> None:
    table = TABLE.with_denied([("GET", "/v1/runs"), ("POST", "/v1/forgotten")])

    found = table.match("POST", "/v1/forgotten")

    assert isinstance(found, Matched)
    assert found.route.access == DENIED


def test_a_route_cannot_name_an_unknown_scope() -> None:
    with pytest.raises(ValueError, match="not a scope"):
        RouteTable([Route(method="GET", template="/x", access="runs:everything")])


def test_every_code_has_a_status_or_lives_inside_a_run_only() -> None:
    assert envelope.STATUS.keys() | INSIDE_A_RUN == CODES.keys()
    assert not envelope.STATUS.keys() & INSIDE_A_RUN


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_rebuilds_its_error(code: str) -> None:
    error = from_code(code, "text")

    assert error.code == code
    assert isinstance(error, CODES[code])


def test_the_text_of_an_internal_error_is_withheld() -> None:
    body = envelope.body_of(from_code("internal", "secret path /etc/shadow"), "cor_1")

    assert b"secret" not in body
    assert b"cor_1" in body


def test_a_final_429_tells_sdks_not_to_retry() -> None:
    error = from_code("budget_exceeded", "spent")

    assert (b"x-should-retry", b"false") in envelope.headers_of(error, token_sent=True)


def test_every_error_class_is_in_the_closed_tree() -> None:
    assert set(AgentOSError.__subclasses__()) == set(CODES.values())


@pytest.mark.parametrize("bad", [None, "", "a b", "x" * 129, "a\nb", "ü"])
def test_a_malformed_correlation_id_is_replaced(bad: str | None) -> None:
    assert trace_from(bad, None).correlation_id.startswith("cor_")


def test_a_valid_correlation_id_and_trace_are_kept() -> None:
    trace = trace_from("my-id_1.2", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")

    assert trace.correlation_id == "my-id_1.2"
    assert trace.traceparent.startswith("00-" + "a" * 32 + "-")
    assert "b" * 16 not in trace.traceparent


@pytest.mark.parametrize(
    "bad", ["", "00-" + "0" * 32 + "-" + "b" * 16 + "-01", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01"]
)
def test_an_invalid_traceparent_starts_a_new_trace(bad: str) -> None:
    assert trace_from(None, bad).traceparent[3:35] not in {"0" * 32, "a" * 32}


@pytest.mark.parametrize("bad", ["", "1", "e1.-1", "e1.01", "e1.1\n", "e1.1.1", "E1.1", "e1." + "9" * 30, "e2.1"])
def test_a_malformed_or_foreign_event_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidArgument):
        sse.parse_cursor(bad, "e1")


def test_an_event_id_gives_its_sequence() -> None:
    assert sse.parse_cursor("e1.42", "e1") == 42
