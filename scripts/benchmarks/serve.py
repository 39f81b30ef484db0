"""The service's throughput: submits and health checks per second, latencies, lost and duplicated jobs, memory.

Web process, database, signatures and the worker loop are real; the engine does nothing. The database is SQLite or, with
`--pooled`, Postgres behind pgbouncer in transaction mode. Prints a table; `main` returns 0 when every target is met.
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
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from pipeline.jobs.model import LedgerFilter
from tests.fakes.images import disc_as_base64
from tests.servers.pgbouncer import pooler
from tests.servers.postgres import running_server

ROOT = Path(__file__).resolve().parents[2]
SUBMIT = "/api/v1/enterprise/3d/image_to_3d"
MIN_SUBMITS_PER_S = 150.0
MAX_SUBMIT_P99_S = 0.4
MIN_HEALTH_PER_S = 2000.0
MAX_MEMORY_GROWTH = 1.15
DRAIN_WAIT_S = 900


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


async def load_submits(port: int, key: str, *, clients: int, seconds: float, at_most: int) -> Load:
    """Submit without waiting for results, for some seconds or until enough requests were sent."""
    load, sent, ends_s = Load(), 0, time.perf_counter() + seconds
    body = json.dumps({"key": key, "image": disc_as_base64(), "output_format": "glb"}).encode()
    request = http_request("POST", SUBMIT, body, prefer="wait=0")

    async def ask(connection: Connection) -> None:
        nonlocal sent
        sent += 1
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


def wait_until_drained(data: Path, database_url: str | None) -> tuple[dict[str, int], list[int]]:
    """Jobs by state once none is queued or running, and the ids in the ledger."""
    from pipeline.deployment import open_store
    from pipeline.settings import Settings

    store = open_store(Settings(data_dir=data, database_url=None if database_url is None else SecretStr(database_url)))
    states: dict[str, int] = {}
    deadline_s = time.monotonic() + DRAIN_WAIT_S
    while time.monotonic() < deadline_s:
        states = dict(store.metrics().states)
        if not states.keys() & {"queued", "running"}:
            break
        time.sleep(0.5)
    ledger = [row.job_id for row in store.usage_rows(LedgerFilter(None), limit=10_000_000)]
    store.close()
    return states, ledger


def measure(
    service: Service, *, clients: int, seconds: float, jobs: int, workers: int
) -> list[tuple[str, str, str, bool]]:
    """Rows of the table: what, measured, target, whether it is met."""
    service.wait_until_ready()
    asyncio.run(load_submits(service.port, service.key, clients=4, seconds=2, at_most=200))  # warm
    health = asyncio.run(load_health(service.port, clients=16, seconds=min(seconds, 10)))
    for _ in range(workers):
        service.start_worker()
    memory, cpu_before = [service.web_memory_mb()], service.cpu_s()
    load = asyncio.run(load_submits(service.port, service.key, clients=clients, seconds=seconds, at_most=10**9))
    memory.append(service.web_memory_mb())
    web_cpu, worker_cpu = (
        (after - before) / max(1, len(load.ids)) for before, after in zip(cpu_before, service.cpu_s(), strict=True)
    )
    rest = asyncio.run(
        load_submits(service.port, service.key, clients=clients, seconds=3600, at_most=max(0, jobs - len(load.ids)))
    )
    memory.append(service.web_memory_mb())
    states, ledger = wait_until_drained(service.data, service.database_url)
    accepted = {*load.ids, *rest.ids}
    lost = len(accepted - set(ledger)) + len(accepted) - len(load.ids) - len(rest.ids)
    duplicated = len(ledger) - len(set(ledger))
    p50, p99 = load.quantile(0.5), load.quantile(0.99)
    growth = memory[-1] / memory[1]
    refused = len(load.refusals) + len(rest.refusals)
    return [
        (
            "accepted submits per second",
            f"{load.per_s:.0f}",
            f">= {MIN_SUBMITS_PER_S:.0f}",
            load.per_s >= MIN_SUBMITS_PER_S,
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
        ("  lost, duplicated", f"{lost}, {duplicated}", "0, 0", lost == duplicated == 0),
        ("  states", ", ".join(f"{count} {state}" for state, count in sorted(states.items())), "", True),
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
                service, clients=options.clients, seconds=options.seconds, jobs=options.jobs, workers=options.workers
            )
        finally:
            service.stop()
    for what, measured, target, is_met in rows:
        print(f"{what:32} {measured:28} {target:14} {'' if is_met else 'MISSED'}".rstrip())
    return 0 if all(row[3] for row in rows) else 1
