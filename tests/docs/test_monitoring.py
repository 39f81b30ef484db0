"""The dashboard and the alert rules name metrics and labels that the service has."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipeline.api.metrics import metrics_text
from pipeline.jobs.histograms import Histogram, Series
from pipeline.jobs.model import StoreMetrics
from pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "docs" / "monitoring"
ADDED_BY_PROMETHEUS = {"instance", "job", "le"}


def expressions() -> Iterator[str]:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of each series of a service that has run a job, refused a request and failed a webhook."""
    counted = StoreMetrics(
        submitted=1,
        ended={"success": 1},
        states={"success": 1},
        oldest_queued_s=0.0,
        stage_seconds={"export": 1.0},
        stage_runs={"export": 1},
        gpu_seconds=0.0,
        kernel_fallbacks={"radiance_field": 1},
        task_attempts={("webhook", "error"): 1},
        tasks_pending={"webhook": 1},
        failed_requests_bytes=0,
        durations={Series("job", "success", "preview"): Histogram(), Series("stage", "export", "preview"): Histogram()},
    )
    text = metrics_text(
        counted, [], {"unauthorized": 1}, engines=["preview"], data_dir=tmp_path_factory.mktemp("monitoring")
    )
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.keys()
    return labels


@pytest.mark.parametrize("expression", list(expressions()), ids=lambda text: re.findall(r"image_to_3d_\w+", text)[0])
def test_each_expression_uses_series_and_labels_that_exist(expression: str, series: dict[str, set[str]]) -> None:
    names = re.findall(r"image_to_3d_\w+", expression)
    assert names and set(names) <= series.keys()
    known = set().union(*(series[name] for name in names)) | ADDED_BY_PROMETHEUS
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    selected = set(re.findall(r"(\w+)=~?\"", expression))
    assert grouped | selected <= known


def test_every_metric_is_on_the_dashboard_or_in_a_rule(series: dict[str, set[str]]) -> None:
    used = {name for expression in expressions() for name in re.findall(r"image_to_3d_\w+", expression)}
    of_histograms = {name for name in series if re.search(r"_(count|sum|created)$", name)}
    sums_of_histograms = {"image_to_3d_stage_seconds_total", "image_to_3d_stage_runs_total"}

    assert series.keys() - of_histograms - sums_of_histograms == used


def test_the_rule_about_kept_requests_has_the_limit_of_the_settings() -> None:
    limit = Settings.model_fields["max_failed_requests_bytes"].default

    assert f"image_to_3d_failed_requests_bytes) > 0.8 * {limit}" in (MONITORING / "alerts.yaml").read_text()


def test_every_metric_of_the_documentation_exists_and_is_documented(series: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    table = page[page.index("| metric | labels |") :].partition("\n\n")[0]
    documented = set(re.findall(r"`(image_to_3d_\w+)`", table))

    assert documented == {re.sub(r"_(bucket|count|sum)$", "", name) for name in series if not name.endswith("_created")}
