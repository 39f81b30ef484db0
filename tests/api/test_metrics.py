"""The metrics page, read by the reference parser of its format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from pipeline.api.metrics import metrics_text
from pipeline.api.refusals import LOG_EVERY_S, Refusals
from pipeline.jobs.histograms import BOUNDS_S, Histogram, Series
from pipeline.jobs.model import StoreMetrics, WorkerRecord
from tests.api.conftest import METRICS_TOKEN, SUBMIT, Deployment

EMPTY = StoreMetrics(
    submitted=0,
    ended={},
    states={},
    oldest_queued_s=0.0,
    stage_seconds={},
    stage_runs={},
    gpu_seconds=0.0,
    kernel_fallbacks={},
    task_attempts={},
    tasks_pending={},
    failed_requests_bytes=0,
    durations={},
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: bytes) -> Samples:
    families = text_string_to_metric_families(text.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def read(
    counted: StoreMetrics, tmp_path: Path, *workers: WorkerRecord, refused: dict[str, int] | None = None
) -> Samples:
    return samples_of(metrics_text(counted, workers, refused or {}, engines=("preview",), data_dir=tmp_path))


def test_every_series_exists_before_anything_has_happened(tmp_path: Path) -> None:
    samples = read(EMPTY, tmp_path)

    for state in ("success", "failed", "cancelled"):
        assert samples["image_to_3d_ended_total", (("state", state),)] == 0
    assert samples["image_to_3d_task_attempts_total", (("kind", "webhook"), ("result", "error"))] == 0
    assert samples["image_to_3d_workers", (("engine", "preview"), ("ready", "yes"))] == 0
    assert samples["image_to_3d_disk_free_bytes", ()] > 0
    assert any(name == "image_to_3d_build_info" and value == 1 for (name, _), value in samples.items())


def test_a_histogram_has_cumulative_buckets_and_a_sum(tmp_path: Path) -> None:
    counts = [0] * (len(BOUNDS_S) + 1)
    counts[2], counts[-1] = 3, 1
    counted = replace(EMPTY, durations={Series("stage", "export", "trellis"): Histogram(counts, 2001.5)})

    samples = read(counted, tmp_path)

    def bucket(bound: str) -> float:
        labels = (("engine", "trellis"), ("le", bound), ("stage", "export"))
        return samples["image_to_3d_stage_duration_seconds_bucket", labels]

    assert [bucket(bound) for bound in ("0.25", "0.5", "1800", "+Inf")] == [0, 3, 3, 4]
    assert samples["image_to_3d_stage_duration_seconds_sum", (("engine", "trellis"), ("stage", "export"))] == 2001.5
    assert samples["image_to_3d_stage_duration_seconds_count", (("engine", "trellis"), ("stage", "export"))] == 4


def test_workers_are_counted_by_engine_and_readiness(tmp_path: Path) -> None:
    workers = [WorkerRecord(f"w{n}", "trellis", 0.0, is_ready=n > 0) for n in range(3)]

    samples = read(EMPTY, tmp_path, *workers)

    assert samples["image_to_3d_workers", (("engine", "trellis"), ("ready", "yes"))] == 2
    assert samples["image_to_3d_workers", (("engine", "trellis"), ("ready", "no"))] == 1


def test_refused_requests_are_counted_by_their_code(deployment: Deployment) -> None:
    deployment.client.post(SUBMIT, json={"image": "x"})
    deployment.client.post(SUBMIT, json={"key": "wrong", "image": "x"})
    deployment.client.get("/no/such/path")

    samples = samples_of(
        deployment.client.get("/metrics", headers={"authorization": f"Bearer {METRICS_TOKEN}"}).content
    )

    assert samples["image_to_3d_refusals_total", (("error_code", "unauthorized"),)] == 2
    assert samples["image_to_3d_refusals_total", (("error_code", "not_found"),)] == 1


def test_a_flood_of_refusals_is_logged_once_a_minute() -> None:
    now = [0.0]
    refusals = Refusals(clock=lambda: now[0])

    with capture_logs() as lines:
        for _ in range(1000):
            refusals.add("unauthorized", method="POST", route="/a")
        refusals.add("not_found", method="GET", route="/b")
        now[0] = LOG_EVERY_S
        refusals.add("unauthorized", method="POST", route="/a")

    assert [(line["error_code"], line["unlogged"]) for line in lines] == [
        ("unauthorized", 0),
        ("not_found", 0),
        ("unauthorized", 999),
    ]
    assert refusals.counts == {"unauthorized": 1001, "not_found": 1}
