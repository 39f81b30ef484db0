"""The service's throughput: submits and health checks per second, latencies, lost and duplicated jobs, memory.

Web process, database, signatures and the worker loop are real; the engine does nothing. The database is SQLite or, with
`--pooled`, Postgres behind pgbouncer in transaction mode. After the load, the queue is waited for. A job is lost when
it has no record, or when it does not end although no other job ends either; one that still waits because the workers
are behind is queued. Prints a table; `main` returns 0 when every target is met.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from pipeline.jobs.model import LedgerFilter
from pipeline.jobs.store import Store
from tests.fakes.images import disc_as_base64
from tests.servers.pgbouncer import pooler
from tests.servers.postgres import running_server

ROOT = Path(__file__).resolve().parents[2]
SUBMIT = "/api/v1/enterprise/3d/image_to_3d"
MIN_SUBMITS_PER_S = 150.0
MAX_SUBMIT_P99_S = 0.4
MIN_HEALTH_PER_S = 2000.0
MIN_SHARE_OF_RATE = 0.98
MAX_MEMORY_GROWTH = 1.15
DRAIN_WAIT_S = 1800.0
QUIET_S = 60.0
"""When no job has ended for this long, the workers have nothing to do, or have stopped."""
LOOK_EVERY_S = 1.0
ROWS_AT_ONCE = 500


@dataclass
class Load:
    """What the clients measured."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("inf")


class Connection:
    """One kept-alive HTTP/1.1 connection; a minimal client, because it shares the service's cores."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        return status, await self._reader.readexactly(length)

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()


def http_request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += ["content-type: application/json", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def drive(
    port: int, clients: int, has_ended: Callable[[], bool], ask: Callable[[Connection], Awaitable[None]]
) -> float:
    """Run clients that each send request after request until `has_ended()`; return the seconds it took."""

    async def client() -> None:
        connection = Connection(port)
        while not has_ended():
            await ask(connection)
        await connection.close()

    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started_s


async def load_submits(
    port: int, key: str, *, clients: int, seconds: float, at_most: int, rate_per_s: float = float("inf")
) -> Load:
    """Submit without waiting for results, for some seconds or until enough requests were sent.

    Args:
        rate_per_s: of all clients together; by default each sends as soon as it has an answer.
    """
    load, sent, begins_s = Load(), 0, time.perf_counter()
    ends_s = begins_s + seconds
    body = json.dumps({"key": key, "image": disc_as_base64(), "output_format": "glb"}).encode()
    request = http_request("POST", SUBMIT, body, prefer="wait=0")

    async def ask(connection: Connection) -> None:
        nonlocal sent
        due_s = begins_s + sent / rate_per_s
        sent += 1
        if (early_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(early_s)
        started_s = time.perf_counter()
        status, answer = await connection.send(request)
        load.latencies_s.append(time.perf_counter() - started_s)
        said = json.loads(answer)
        if status == 200 and isinstance(said.get("id"), int):
            load.ids.append(said["id"])
        else:
            load.refusals.append(f"{status} {said.get('message', '')}")

    load.seconds = await drive(port, clients, lambda: time.perf_counter() > ends_s or sent >= at_most, ask)
    return load


async def load_health(port: int, *, clients: int, seconds: float) -> Load:
    """Request /health as fast as possible."""
    load, ends_s = Load(), time.perf_counter() + seconds
    request = http_request("GET", "/health")

    async def ask(connection: Connection) -> None:
        started_s = time.perf_counter()
        status, _ = await connection.send(request)
        load.latencies_s.append(time.perf_counter() - started_s)
        if status != 200:
            load.refusals.append(str(status))

    load.seconds = await drive(port, clients, lambda: time.perf_counter() > ends_s, ask)
    return load


def run_idle_worker(data: Path, worker_id: str) -> None:
    """Run a worker whose jobs succeed at once."""
    from pipeline.deployment import open_store
    from pipeline.jobs.model import Job, JobResult, JobState
    from pipeline.jobs.worker_loop import LeaseKeeper, QueueWorker, WorkerOptions
    from pipeline.local.supervisor import call_when_orphaned, stop_on_signals
    from pipeline.settings import Settings
    from pipeline.telemetry import configure_logging

    configure_logging("WARNING")

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        return JobResult(
            JobState.SUCCESS, stage_seconds={"generate": 0.001}, engine="nothing", meta=job.meta.parameters
        )

    stop = stop_on_signals()
    call_when_orphaned(stop.set)
    store = open_store(Settings(data_dir=data))
    QueueWorker(store, work, WorkerOptions(worker_id, engine="nothing")).run(stop)
    store.close()


class Service:
    """`image-to-3d serve` without workers of its own, and workers that do nothing, on a fresh data folder.

    Args:
        database_url: Postgres; None is an SQLite file in the folder.
        root: the checkout whose version is started.
    """

    def __init__(self, data: Path, database_url: str | None = None, *, root: Path = ROOT) -> None:
        self.data = data
        self.database_url = database_url
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.key = "bench-key-with-some-length"
        settings = ["API_KEY=" + self.key, "LOG_LEVEL=WARNING", "MAX_QUEUED=0", "MAX_PER_MINUTE=0"]
        if database_url is not None:
            settings.append(f"DATABASE_URL={database_url}")
        self._environment = ["env", "-u", "DATABASE_URL", *(f"IMAGE_TO_3D_{setting}" for setting in settings)]
        serve = [sys.executable, "-m", "pipeline.cli", "serve", "--data", str(data), "--workers", "0"]
        command = [*self._environment, f"PYTHONPATH={root}", *serve, "--port", str(self.port)]
        self._processes = [subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)]

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "scripts.benchmarks", "serve", "--worker", str(self.data)]
        self._processes.append(subprocess.Popen([*self._environment, *command], cwd=ROOT))

    def open_store(self) -> Store:
        """The service's store, from this process."""
        from pipeline.deployment import open_store
        from pipeline.settings import Settings

        url = None if self.database_url is None else SecretStr(self.database_url)
        return open_store(Settings(data_dir=self.data, database_url=url))

    def web_memory_mb(self) -> float:
        """Resident megabytes of the web process."""
        status = Path(f"/proc/{self._web_pid()}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of the web process and of the worker; other load on the machine hardly changes them."""
        worker = [process.pid for process in self._processes[1:]]
        return cpu_s_of(self._web_pid()), sum(map(cpu_s_of, worker))

    def _web_pid(self) -> int:
        """The supervisor's child."""
        parent = self._processes[0].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(60)


def cpu_s_of(pid: int) -> float:
    """User and system seconds of a process, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Outcome:
    """What has become of the jobs that were accepted.

    Attributes:
        lost: they have no record, or have not ended although no other job ends either.
        queued: they have not ended, and others do: the workers are behind.
        duplicated: two of them have one id, or one was started twice or is in the ledger twice.
        states: of all jobs.
    """

    lost: int
    queued: int
    duplicated: int
    states: dict[str, int]


def wait_for_the_queue(store: Store, *, quiet_s: float = QUIET_S, most_s: float = DRAIN_WAIT_S) -> bool:
    """Wait while jobs end; returns whether they still do, at the end of the longest wait."""
    ended, looked_s = -1, time.monotonic()
    deadline_s = changed_s = looked_s
    deadline_s += most_s
    while looked_s < deadline_s:
        states = store.metrics().states
        if not states.get("queued") and not states.get("running"):
            return False
        if (now_ended := sum(states.values()) - states.get("queued", 0) - states.get("running", 0)) != ended:
            ended, changed_s = now_ended, looked_s
        elif looked_s - changed_s >= quiet_s:
            return False
        time.sleep(min(LOOK_EVERY_S, quiet_s))
        looked_s = time.monotonic()
    return True


def outcome_of(store: Store, accepted: Collection[int], *, is_moving: bool) -> Outcome:
    """Count jobs by what has become of them.

    Args:
        accepted: the ids that submits were answered with.
        is_moving: jobs still end.
    """
    ids = sorted(set(accepted))
    found = [
        job for start in range(0, len(ids), ROWS_AT_ONCE) for job in store.get_many(ids[start : start + ROWS_AT_ONCE])
    ]
    waiting = sum(not job.state.is_final for job in found)
    ledger = Counter(row.job_id for row in store.usage_rows(LedgerFilter(None), limit=10_000_000))
    is_ended = {job.id for job in found if job.state.is_final}
    lost = len(ids) - len(found) + len(is_ended - ledger.keys()) + (0 if is_moving else waiting)
    twice = sum(ledger[job.id] > 1 or job.attempts > 1 for job in found)
    return Outcome(
        lost=lost,
        queued=waiting if is_moving else 0,
        duplicated=len(accepted) - len(ids) + twice,
        states=dict(store.metrics().states),
    )


def measure(
    service: Service, *, clients: int, seconds: float, jobs: int, workers: int, rate_per_s: float = float("inf")
) -> list[tuple[str, str, str, bool]]:
    """Rows of the table: what, measured, target, whether it is met."""
    service.wait_until_ready()
    asyncio.run(load_submits(service.port, service.key, clients=4, seconds=2, at_most=200))  # warm
    health = asyncio.run(load_health(service.port, clients=16, seconds=min(seconds, 10)))
    for _ in range(workers):
        service.start_worker()
    memory, cpu_before = [service.web_memory_mb()], service.cpu_s()
    load = asyncio.run(
        load_submits(service.port, service.key, clients=clients, seconds=seconds, at_most=10**9, rate_per_s=rate_per_s)
    )
    memory.append(service.web_memory_mb())
    web_cpu, worker_cpu = (
        (after - before) / max(1, len(load.ids)) for before, after in zip(cpu_before, service.cpu_s(), strict=True)
    )
    rest = asyncio.run(
        load_submits(service.port, service.key, clients=clients, seconds=3600, at_most=max(0, jobs - len(load.ids)))
    )
    memory.append(service.web_memory_mb())
    with closing(service.open_store()) as store:
        at_the_end = store.metrics().states.get("queued", 0)
        drained_s = -time.monotonic()
        is_moving = wait_for_the_queue(store)
        drained_s += time.monotonic()
        outcome = outcome_of(store, [*load.ids, *rest.ids], is_moving=is_moving)
    memory.append(service.web_memory_mb())
    least_per_s = min(MIN_SUBMITS_PER_S, MIN_SHARE_OF_RATE * rate_per_s)
    p50, p99 = load.quantile(0.5), load.quantile(0.99)
    growth = memory[-1] / memory[1]
    refused = len(load.refusals) + len(rest.refusals)
    return [
        (
            "accepted submits per second",
            f"{load.per_s:.0f}",
            f">= {least_per_s:.0f}",
            load.per_s >= least_per_s,
        ),
        (
            "  median, 99th percentile",
            f"{p50 * 1e3:.0f} ms, {p99 * 1e3:.0f} ms",
            "p99 < 400 ms",
            p99 < MAX_SUBMIT_P99_S,
        ),
        ("  CPU per submit, web + worker", f"{web_cpu * 1e3:.1f} + {worker_cpu * 1e3:.1f} ms", "", True),
        ("  refused", str(refused), "0", refused == 0),
        ("jobs sent, total", str(len(load.ids) + len(rest.ids)), "", True),
        ("  queued when the load ends", f"{at_the_end}, for {drained_s:.0f} s", "", True),
        ("  queued at the end", str(outcome.queued), "0", outcome.queued == 0),
        (
            "  lost, duplicated",
            f"{outcome.lost}, {outcome.duplicated}",
            "0, 0",
            outcome.lost == outcome.duplicated == 0,
        ),
        ("  states", ", ".join(f"{count} {state}" for state, count in sorted(outcome.states.items())), "", True),
        (
            "GET /health per second",
            f"{health.per_s:.0f}",
            f">= {MIN_HEALTH_PER_S:.0f}",
            health.per_s >= MIN_HEALTH_PER_S,
        ),
        ("web process, MB", " -> ".join(f"{mb:.0f}" for mb in memory), "flat", growth < MAX_MEMORY_GROWTH),
    ]


def main(argv: list[str]) -> int:
    """Measure and print; 0 when every target is met."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks serve", description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=20_000, help="total submits, to measure the memory's growth")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=float("inf"), help="submits per second, by default all possible")
    parser.add_argument("--pooled", action="store_true", help="Postgres behind pgbouncer instead of SQLite")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker is not None:
        run_idle_worker(options.worker, f"bench-{os.getpid()}")
        return 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        url = servers.enter_context(pooler(servers.enter_context(running_server()))) if options.pooled else None
        service = Service(Path(folder) / "data", url)
        try:
            rows = measure(
                service,
                clients=options.clients,
                seconds=options.seconds,
                jobs=options.jobs,
                workers=options.workers,
                rate_per_s=options.rate,
            )
        finally:
            service.stop()
    for what, measured, target, is_met in rows:
        print(f"{what:32} {measured:28} {target:14} {'' if is_met else 'MISSED'}".rstrip())
    return 0 if all(row[3] for row in rows) else 1
