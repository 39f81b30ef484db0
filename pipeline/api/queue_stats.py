"""The numbers behind every estimate, read at most once a second. Knows nothing of HTTP."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.answers import DEFAULT_JOB_S
from pipeline.jobs.histograms import Histogram, Series
from pipeline.jobs.model import JobState, Timings
from pipeline.jobs.store import JobStore, WorkerRegistry
from pipeline.jobs.transitions import EXPORT_STAGE

LIFETIME_S = 1.0


class QueueStatsStore(JobStore, WorkerRegistry, Protocol):
    """What the statistics are read from."""


@dataclass(frozen=True)
class QueueStats:
    """How long jobs take at present, and how many workers there are."""

    timings: Timings
    workers: int


class QueueStatsReader:
    """Reads the statistics and keeps them for a second.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, store: QueueStatsStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._last: QueueStats | None = None
        self._read_at_s = 0.0

    def read(self) -> QueueStats:
        """The statistics, at most `LIFETIME_S` old. Blocks."""
        with self._lock:
            if self._last is None or self._clock() - self._read_at_s >= LIFETIME_S:
                self._last = QueueStats(self._store.timings(), len(self._store.workers()))
                self._read_at_s = self._clock()
            return self._last


@dataclass(frozen=True)
class QueueEstimate:
    """What a job that is submitted now can expect.

    Attributes:
        engines: those of the workers that are ready.
        job_s: mean seconds of recent jobs.
        queued: jobs that wait.
        wait_s: whole seconds until the job would start.
        job_s_of: mean seconds of work by engine, of the engines that have run.
    """

    engines: frozenset[str]
    job_s: float
    queued: int
    wait_s: int
    job_s_of: Mapping[str, float] = field(default_factory=dict[str, float])


def read_queue_estimate(store: QueueStatsStore) -> QueueEstimate:
    """The queue at present. Blocks."""
    workers, timings = store.workers(), store.timings()
    counted = store.metrics()
    queued = counted.states.get(JobState.QUEUED, 0)
    job_s = timings.seconds if timings.calls else DEFAULT_JOB_S
    ahead = queued if any(worker.job_id is None for worker in workers) else queued + 1
    return QueueEstimate(
        engines=frozenset(engine for worker in workers if worker.is_ready for engine in worker.engines),
        job_s=job_s,
        queued=queued,
        wait_s=math.ceil(job_s * ahead / max(1, len(workers))),
        job_s_of=_seconds_by_engine(counted.durations),
    )


def _seconds_by_engine(durations: Mapping[Series, Histogram]) -> dict[str, float]:
    """Mean seconds of a job of each engine: the sum of its stages' means, without the stage that only exports have."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for series, histogram in durations.items():
        runs = sum(histogram.counts)
        if series.kind == "stage" and series.name != EXPORT_STAGE and runs:
            seconds[series.engine] += histogram.sum_s / runs
    return dict(seconds)
