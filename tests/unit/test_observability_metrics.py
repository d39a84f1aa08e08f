from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability.instrument import PortCall
from observability.metrics import Bounded, Metrics
from observability.names import METRICS
from ports.ids import TenantId
from ports.messages import Usage

ACME = TenantId("tnt_acme")


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def test_metric_names_have_area_noun_and_unit_and_are_unique() -> None:
    names = [metric.name for metric in METRICS]

    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("agentos_")
        assert metric.name.count("_") >= 2, metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert metric.kind != "histogram" or metric.name.endswith("_seconds"), metric.name


def test_every_metric_is_rendered() -> None:
    rendered = Metrics().render().decode()

    for metric in METRICS:
        assert f"# TYPE {metric.name}" in rendered


def test_two_processes_in_one_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.auth_failure("unauthenticated")

    assert value(first, "agentos_auth_failures_total", code="unauthenticated") == 1
    assert ("agentos_auth_failures_total", (("code", "unauthenticated"),)) not in samples(second)


def test_requests_are_counted_by_template_method_and_class() -> None:
    metrics = Metrics()
    metrics.http_request(route="/v1/runs/{run_id}", method="GET", status=404, seconds=0.02)
    metrics.http_request(route="/v1/runs/{run_id}", method="BREW", status=200, seconds=None)

    template = "/v1/runs/{run_id}"
    assert value(metrics, "agentos_http_requests_total", route=template, method="GET", status_class="4xx") == 1
    assert value(metrics, "agentos_http_requests_total", route=template, method="other", status_class="2xx") == 1
    count = "agentos_http_request_duration_seconds_count"
    assert value(metrics, count, route=template, method="GET", status_class="4xx") == 1


def fail_while_active(metrics: Metrics) -> None:
    with metrics.run_active():
        assert value(metrics, "agentos_run_active_runs") == 1
        raise ZeroDivisionError


def test_gauges_go_back_also_when_the_work_fails() -> None:
    metrics = Metrics()

    with pytest.raises(ZeroDivisionError):
        fail_while_active(metrics)

    assert value(metrics, "agentos_run_active_runs") == 0


def test_a_run_is_told_from_creation_to_end() -> None:
    metrics = Metrics()
    metrics.run_created(ACME)
    metrics.run_claimed(waited=timedelta(seconds=1), recovered=False)
    metrics.run_claimed(waited=None, recovered=True)
    metrics.step(kind="tool", status="completed", seconds=0.1)
    metrics.tool_call(tool="calculator", seconds=0.1)
    metrics.tool_call(tool="http_get", seconds=15, error_code="tool_timeout")
    metrics.queue_depth(7)
    metrics.run_finished(status="succeeded", took=timedelta(seconds=2))

    assert value(metrics, "agentos_run_creations_total", tenant="tnt_acme") == 1
    assert value(metrics, "agentos_run_queue_wait_seconds_sum") == 1
    assert value(metrics, "agentos_run_recoveries_total") == 1
    assert value(metrics, "agentos_tool_errors_total", tool="http_get", code="tool_timeout") == 1
    assert value(metrics, "agentos_queue_depth_messages") == 7
    assert value(metrics, "agentos_run_completions_total", status="succeeded") == 1
    assert value(metrics, "agentos_run_duration_seconds_sum", status="succeeded") == 2


def test_a_model_call_is_told_with_what_it_used() -> None:
    metrics = Metrics()
    metrics.model_request(backend="demo", model="demo-1", seconds=0.1, error_code="upstream_error")
    metrics.usage(model="demo-1", tenant=ACME, usage=Usage(prompt_tokens=5, completion_tokens=7, cost_nanousd=11))
    metrics.policy_block("secret")
    metrics.redactions("email", 3)
    metrics.budget_refusal("budget_exceeded")

    name = "agentos_model_usage_tokens_total"
    assert value(metrics, "agentos_model_errors_total", backend="demo", code="upstream_error") == 1
    assert value(metrics, name, model="demo-1", tenant="tnt_acme", direction="prompt") == 5
    assert value(metrics, name, model="demo-1", tenant="tnt_acme", direction="completion") == 7
    assert value(metrics, "agentos_model_cost_nanousd_total", model="demo-1", tenant="tnt_acme") == 11
    assert value(metrics, "agentos_policy_redactions_total", kind="email") == 3


@pytest.mark.parametrize(("code", "errors"), [("ok", 0), ("cancelled", 0), ("unavailable", 1)])
def test_a_port_call_counts_as_error_only_when_it_failed(code: str, errors: int) -> None:
    metrics = Metrics()
    metrics.port_call(PortCall(port="queue", method="lease", code=code, seconds=0.1, auth=None))

    assert value(metrics, "agentos_port_call_duration_seconds_count", port="queue", method="lease") == 1
    label = (("code", code), ("method", "lease"), ("port", "queue"))
    assert samples(metrics).get(("agentos_port_errors_total", label), 0) == errors


def test_tenants_beyond_the_bound_share_a_series() -> None:
    metrics = Metrics(max_tenants=10)
    for number in range(10_000):
        metrics.run_created(TenantId(f"tnt_{number}"))

    series = {
        labels: count for (name, labels), count in samples(metrics).items() if name == "agentos_run_creations_total"
    }
    assert len(series) == 11
    assert series[("tenant", "other"),] == 9_990


def test_a_label_once_given_stays() -> None:
    bounded = Bounded(1)

    assert [bounded.label(text) for text in ("a", "b", "a", "c")] == ["a", "other", "a", "other"]
