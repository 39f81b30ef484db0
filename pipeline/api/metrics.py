"""`/metrics`: the store's counters, and what this web process sees of its machine, in Prometheus' text format.

The store's counters are those of the whole deployment: every web process answers the same numbers. Those that belong to
one web process are `image_to_3d_refusals_total` and the free space.
"""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.jobs.histograms import BOUNDS_S, Histogram, Series
from pipeline.jobs.model import JobState, StoreMetrics, WorkerRecord
from pipeline.version import __version__

STATES = tuple(map(str, JobState))
UPPER_BOUNDS = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")


def metrics_text(
    counted: StoreMetrics,
    workers: Iterable[WorkerRecord],
    refusals: Mapping[str, int],
    *,
    engines: Iterable[str],
    data_dir: Path,
) -> bytes:
    """All metrics of a deployment.

    Args:
        refusals: refused requests of this web process, by error code.
        engines: the engines that requests may name: each has a series from the start.
        data_dir: the folder whose disk space is reported.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        _Collector([*_of_store(counted), _workers(workers, engines), *_of_process(refusals, data_dir), _build()])
    )
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_store(counted: StoreMetrics) -> list[Metric]:
    stages, tasks = sorted(counted.stage_seconds), ("webhook", "upload")
    return [
        CounterMetricFamily("image_to_3d_submits", "Jobs accepted", value=counted.submitted),
        CounterMetricFamily("image_to_3d_gpu_seconds", "Accelerator seconds", value=counted.gpu_seconds),
        GaugeMetricFamily(
            "image_to_3d_oldest_queued_seconds", "Age of the job that has waited longest", value=counted.oldest_queued_s
        ),
        _family(
            CounterMetricFamily("image_to_3d_ended", "Jobs ended, by state", labels=["state"]),
            {(state,): counted.ended.get(state, 0) for state in STATES if JobState(state).is_final},
        ),
        _family(
            GaugeMetricFamily("image_to_3d_calls", "Jobs on record, by state", labels=["state"]),
            {(state,): counted.states.get(state, 0) for state in STATES},
        ),
        _family(
            CounterMetricFamily("image_to_3d_stage_seconds", "Wall seconds, by stage", labels=["stage"]),
            {(stage,): counted.stage_seconds[stage] for stage in stages},
        ),
        _family(
            CounterMetricFamily("image_to_3d_stage_runs", "Runs, by stage", labels=["stage"]),
            {(stage,): counted.stage_runs.get(stage, 0) for stage in stages},
        ),
        _family(
            CounterMetricFamily(
                "image_to_3d_kernel_fallbacks",
                "Jobs in which PyTorch replaced a GPU kernel that does not run there",
                labels=["kernel"],
            ),
            {(kernel,): count for kernel, count in sorted(counted.kernel_fallbacks.items())},
        ),
        _family(
            CounterMetricFamily(
                "image_to_3d_task_attempts", "Attempts of webhooks and late uploads", labels=["kind", "result"]
            ),
            {
                (kind, result): counted.task_attempts.get((kind, result), 0)
                for kind in tasks
                for result in ("ok", "error")
            },
        ),
        _family(
            GaugeMetricFamily(
                "image_to_3d_tasks_pending", "Webhooks and late uploads that are pending", labels=["kind"]
            ),
            {(kind,): counted.tasks_pending.get(kind, 0) for kind in tasks},
        ),
        GaugeMetricFamily(
            "image_to_3d_failed_requests_bytes",
            "Requests that failed jobs keep for a retry by the operator",
            value=counted.failed_requests_bytes,
        ),
        _histogram("image_to_3d_job_duration_seconds", "Time from a job's submit to its end", "state", counted, "job"),
        _histogram("image_to_3d_stage_duration_seconds", "Wall time of a stage", "stage", counted, "stage"),
    ]


Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


def _family(family: Family, values: Mapping[tuple[str, ...], float]) -> Family:
    for labels, value in values.items():
        family.add_metric(list(labels), value)
    return family


def _histogram(name: str, help_text: str, label: str, counted: StoreMetrics, kind: str) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help_text, labels=["engine", label])
    for series, histogram in sorted(counted.durations.items(), key=_order):
        if series.kind == kind:
            buckets = list(zip(UPPER_BOUNDS, accumulate(histogram.counts), strict=True))
            family.add_metric([series.engine, series.name], buckets, sum_value=histogram.sum_s)
    return family


def _order(item: tuple[Series, Histogram]) -> tuple[str, str, str]:
    series = item[0]
    return series.kind, series.engine, series.name


def _workers(workers: Iterable[WorkerRecord], engines: Iterable[str]) -> GaugeMetricFamily:
    alive = Counter(
        (engine, "yes" if worker.is_ready else "no") for worker in workers for engine in worker.engines or ("",)
    )
    known = dict.fromkeys([*engines, *(engine for engine, _ in alive)])
    return _family(
        GaugeMetricFamily(
            "image_to_3d_workers",
            "Workers alive that have the engine, and whether they claim jobs",
            labels=["engine", "ready"],
        ),
        {(engine, ready): alive[engine, ready] for engine in known for ready in ("yes", "no")},
    )


def _of_process(refusals: Mapping[str, int], data_dir: Path) -> list[Metric]:
    refused = CounterMetricFamily("image_to_3d_refusals", "Requests refused by this web process", labels=["error_code"])
    families: list[Metric] = [_family(refused, {(code,): count for code, count in sorted(refusals.items())})]
    try:
        free_bytes = shutil.disk_usage(data_dir).free
    except OSError:  # no such folder, as on a machine that keeps nothing
        return families
    free = GaugeMetricFamily("image_to_3d_disk_free_bytes", "Free space of the data folder's disk", value=free_bytes)
    return [*families, free]


def _build() -> GaugeMetricFamily:
    labels = {"version": __version__, "python": platform.python_version()}
    family = GaugeMetricFamily("image_to_3d_build_info", "1, with the version as label", labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family
