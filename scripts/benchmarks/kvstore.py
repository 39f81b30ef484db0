"""The cost of the key-value store: map operations per method, of waiting and of running jobs, and submits per second.

python -m scripts.benchmarks kvstore [--latency-ms 20] [--threads 16] [--submits 200] [--running 100]
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from pipeline.errors import StoreUnavailable
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import (
    ApiKey,
    AttemptResult,
    JobFilter,
    JobMeta,
    JobResult,
    JobState,
    KeyLimits,
    Lease,
    NewJob,
    Progress,
    WorkerRecord,
)
from pipeline.jobs.stores.kv.store import KvStore
from tests.fakes.key_values import MemoryKeyValues

R = TypeVar("R")

HEARTBEAT_INTERVAL_S = 2.0
"""As `pipeline.on_modal.functions`, which needs more packages."""


class CountedKeyValues(MemoryKeyValues):
    """A map that counts its operations and delays each by a latency."""

    def __init__(self, latency_s: float) -> None:
        super().__init__()
        self.latency_s = latency_s
        self.operations = 0
        self._count_lock = threading.Lock()

    def _wait(self) -> None:
        with self._count_lock:
            self.operations += 1
        time.sleep(self.latency_s)

    def get(self, key: str) -> bytes | None:
        self._wait()
        return super().get(key)

    def put(self, key: str, value: bytes) -> None:
        self._wait()
        super().put(key, value)

    def create(self, key: str, value: bytes) -> bool:
        self._wait()
        return super().create(key, value)

    def delete(self, key: str) -> None:
        self._wait()
        super().delete(key)


def new_job(key: ApiKey) -> NewJob:
    """A submit of a job with a webhook."""
    meta = JobMeta({f"parameter {number}": number for number in range(30)})
    return NewJob(key.id, "prefix", b"{}", "0" * 64, meta=meta, webhook_url="http://127.0.0.1/h")


def table_of_operations(console: Console) -> None:
    """Each method once: alone, and with another process committing before each."""
    rows = [("alone", False), ("after another commit", True)]
    counts = [_count_operations(is_disturbed) for _, is_disturbed in rows]
    table = Table("method", *[name for name, _ in rows], title="map operations")
    for method in counts[0]:
        table.add_row(method, *[str(count[method]) for count in counts])
    console.print(table)


def _count_operations(is_disturbed: bool) -> dict[str, int]:
    entries = CountedKeyValues(0.0)
    store, other = KvStore(entries), KvStore(entries)
    key = store.add_key(make_key("bench", limits=KeyLimits())[1])
    counts: dict[str, int] = {}

    def count(name: str, call: Callable[[], R]) -> R:
        if is_disturbed:
            other.request_restart()
        before = entries.operations
        result = call()
        counts[name] = entries.operations - before
        return result

    submitted = count("submit", lambda: store.submit(new_job(key))).job
    count("find_key", lambda: store.find_key(key.sha256))
    count("get, queued", lambda: store.get(submitted.id, api_key_id=key.id))
    claimed = count("claim", lambda: store.claim("w", lease_s=30, job_id=submitted.id))
    assert claimed is not None
    count("request_of", lambda: store.request_of(claimed.id))
    count("renew, first", lambda: store.renew(claimed.lease, lease_s=30))
    count("renew", lambda: store.renew(claimed.lease, lease_s=30))
    count("report", lambda: store.report(claimed.lease, Progress("generate", 40)))
    count("get, running", lambda: store.get(submitted.id, api_key_id=key.id))
    count("heartbeat_worker", lambda: store.heartbeat_worker(WorkerRecord("w", "x", 0.0, is_ready=True)))
    count("complete", lambda: store.complete(claimed.lease, JobResult(JobState.SUCCESS)))
    count("get, ended", lambda: store.get(submitted.id, api_key_id=key.id))
    task = count("claim_task", lambda: store.claim_task("webhook", claim_s=60))
    assert task is not None
    count("claim_task, none due", lambda: store.claim_task("webhook", claim_s=60))
    count(
        "settle_task",
        lambda: store.settle_task(task, AttemptResult(status=200, error="", seconds=0.1, retry_in_s=None)),
    )
    count("list_jobs, one", lambda: store.list_jobs(JobFilter(key.id)))
    count("metrics", store.metrics)
    return counts


def table_of_polls(console: Console) -> None:
    """Map operations of one look of a web container, and of one heartbeat, while so many jobs run."""
    table = Table("running jobs", "look for ended ones", "look with progress", "heartbeats", title="operations")
    for running in (1, 20, 60, 100):
        entries = CountedKeyValues(0.0)
        web, leases = _start_jobs(entries, running)
        ids = [lease.job_id for lease in leases]
        counts: list[int] = []
        for look in (web.ended, web.get_many):
            look(ids)
            before = entries.operations
            look(ids)
            counts.append(entries.operations - before)
        stores = [KvStore(entries) for _ in leases]
        for beat in range(2):  # the first of a process finds the newest version
            before = entries.operations
            for store, lease in zip(stores, leases, strict=True):
                store.renew(lease, lease_s=30, progress=Progress("generate", beat))
        counts.append(entries.operations - before)
        table.add_row(str(running), *map(str, counts))
    console.print(table)


def _start_jobs(entries: CountedKeyValues, running: int) -> tuple[KvStore, list[Lease]]:
    store = KvStore(entries)
    key = store.add_key(make_key("bench", limits=KeyLimits())[1])
    leases: list[Lease] = []
    for number in range(running):
        job = store.submit(new_job(key)).job
        claimed = store.claim(f"w{number}", lease_s=30, job_id=job.id)
        assert claimed is not None
        leases.append(claimed.lease)
    return store, leases


def pauses_of_heartbeats(console: Console, *, running: int, latency_s: float, seconds: float = 30.0) -> None:
    """The pauses between the heartbeats of so many jobs, each with a store of its own, as Modal's containers have."""
    entries = CountedKeyValues(0.0)
    _, leases = _start_jobs(entries, running)
    entries.latency_s, entries.operations = latency_s, 0
    pauses: list[float] = []
    failed: list[StoreUnavailable] = []
    deadline_s = time.monotonic() + seconds

    def beat(lease: Lease) -> None:
        store, last_s, number = KvStore(entries), time.monotonic(), 0
        time.sleep(random.uniform(0.0, HEARTBEAT_INTERVAL_S))
        while time.monotonic() < deadline_s:
            time.sleep(HEARTBEAT_INTERVAL_S)
            number += 1
            try:
                store.renew(lease, lease_s=30, progress=Progress("generate", number))
            except StoreUnavailable as error:
                failed.append(error)
            else:
                pauses.append(time.monotonic() - last_s)
                last_s = time.monotonic()

    with ThreadPoolExecutor(running) as pool:
        list(pool.map(beat, leases))
    rate = entries.operations / seconds / running
    pauses.sort()
    console.print(
        f"{running} running jobs, {latency_s * 1000:.0f} ms an operation: pause between heartbeats median "
        f"{pauses[len(pauses) // 2]:.1f} s, longest {pauses[-1]:.1f} s, {len(failed)} failed; "
        f"{rate:.2f} operations a second for each job"
    )


def rate_of_submits(console: Console, *, latency_s: float, threads: int, submits: int) -> None:
    """Submits per second from the threads of one process, and of several."""
    for processes in (1, 2, 4):
        entries = CountedKeyValues(latency_s)
        stores = [KvStore(entries) for _ in range(processes)]
        key = stores[0].add_key(make_key("bench", limits=KeyLimits())[1])
        entries.operations = 0
        began_s = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            some = [pool.submit(stores[number % processes].submit, new_job(key)) for number in range(submits)]
            jobs = [submitted.result().job.id for submitted in some]
        seconds = time.perf_counter() - began_s
        assert len(set(jobs)) == submits == stores[0].metrics().submitted
        console.print(
            f"{submits} submits, {threads} threads in {processes} processes, {latency_s * 1000:.0f} ms an operation: "
            f"{submits / seconds:.0f} a second, {entries.operations / submits:.1f} operations each"
        )


def main(argv: list[str] | None = None) -> int:
    """Print the operations of each method, then the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--submits", type=int, default=200)
    parser.add_argument("--running", type=int, default=100)
    options = parser.parse_args(argv)
    console = Console()
    table_of_operations(console)
    table_of_polls(console)
    pauses_of_heartbeats(console, running=options.running, latency_s=options.latency_ms / 1000)
    rate_of_submits(console, latency_s=options.latency_ms / 1000, threads=options.threads, submits=options.submits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
