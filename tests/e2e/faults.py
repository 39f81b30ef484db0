"""Fault injection: kills the processes of a real service under load, then checks what must hold afterwards.

The tests run a few rounds, `python -m scripts.benchmarks faults` hundreds. Every submit carries an idempotency key and
is repeated until it is answered, as a careful client does, so a lost answer leaves no second job.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from pipeline.deployment import open_store
from pipeline.jobs.model import Job, JobFilter, JobState, LedgerFilter
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.settings import Settings
from tests.fakes.images import disc_as_base64

ROOT = Path(__file__).resolve().parents[2]
SUBMIT = "/api/v1/enterprise/3d/image_to_3d"
SUPERVISOR_SHARE = 0.1
KEY = "fault-test-key-with-some-length"
ACCEPTABLE_ERRORS = frozenset({"interrupted"})
"""Error codes that a job may end with: it was claimed three times, and each time its worker was killed."""
FLAKY_PATH = "/flaky-hook"


class Receiver:
    """A webhook receiver that records deliveries by job id; at its flaky address it can be made to hang.

    Attributes:
        delivered: webhook id and body of each answered delivery, by job id.
        delivered_at: time of a job's first delivery, seconds since 1970.
        unanswered: the number of requests that were accepted and never answered.
    """

    def __init__(self) -> None:
        self.delivered: defaultdict[int, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        self.delivered_at: dict[int, float] = {}
        self.unanswered = 0
        self._is_answering = threading.Event()
        self._is_answering.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == FLAKY_PATH and not receiver._is_answering.is_set():
                    receiver.unanswered += 1
                    receiver._is_answering.wait()
                    return
                receiver.delivered_at.setdefault(body["id"], time.time())
                receiver.delivered[body["id"]].append((self.headers["webhook-id"], body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self.flaky_url = f"http://127.0.0.1:{self._server.server_port}{FLAKY_PATH}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Accept requests at the flaky address, and never answer them."""
        self._is_answering.clear()
        try:
            yield
        finally:
            self._is_answering.set()

    def wait_for(self, job_id: int, timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait for a job's webhook; return the body of the last delivery."""
        deadline_s = time.monotonic() + timeout_s
        while not self.delivered.get(job_id):
            assert time.monotonic() < deadline_s, f"no webhook of job {job_id} was delivered"
            time.sleep(0.05)
        return self.delivered[job_id][-1][1]

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Service:
    """`image-to-3d serve` on a folder of its own.

    Args:
        environment: variables that are not our settings.
        settings: our settings, by field name.
    """

    def __init__(
        self, data: Path, *, workers: int, environment: Mapping[str, str] | None = None, **settings: object
    ) -> None:
        self.data = data
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        given = {"API_KEY": KEY, "ALLOW_PRIVATE_ADDRESSES": 1, "LEASE_S": 4, "MAX_QUEUED": 0, "MAX_PER_MINUTE": 0}
        given |= {"STOP_GRACE_S": 5, **{name.upper(): value for name, value in settings.items()}}
        variables = [f"IMAGE_TO_3D_{name}={value}" for name, value in given.items()]
        variables += [f"{name}={value}" for name, value in (environment or {}).items()]
        serve = ["-m", "pipeline.cli", "serve", "--data", str(data), "--workers", str(workers)]
        self._command = ["env", "-u", "DATABASE_URL", *variables, sys.executable, *serve, "--port", str(self.port)]
        self._log = (data.parent / "service.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service, or restart it after `kill`."""
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=self._log, stderr=self._log)

    def wait_until_ready(self, timeout_s: float = 60) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)

    def processes(self) -> list[int]:
        """The process ids of the web process and the workers."""
        assert self._process is not None
        pid = self._process.pid
        with suppress(FileNotFoundError):
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def kill_one(self, rng: random.Random) -> None:
        """Send SIGKILL to one of the processes; restart the supervisor if it is the one."""
        alive = self.processes()
        if rng.random() < SUPERVISOR_SHARE:
            self.kill()
            self.start()
        elif alive:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(alive), signal.SIGKILL)

    def kill(self) -> None:
        """Send SIGKILL to the supervisor; its children exit by themselves, after the job that they run."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)
        self._log.close()


class Reachable(Protocol):
    """A service under load."""

    @property
    def address(self) -> str:
        """Where the next request goes."""
        ...


@dataclass
class Client:
    """Submits until stopped, and repeats each submit until it is answered.

    Attributes:
        accepted: ids by idempotency key.
        refused: answers that were not a job, other than 503 with Retry-After.
        accepted_at_s: when submits were accepted, on the monotonic clock.
        postponed_at_s: when a 503 asked to retry, on the monotonic clock.
        unanswered: the errors of submits that got no answer.
        slowest_s: the longest wait for an answer.
        fields: further request fields.
    """

    service: Reachable
    webhook: str
    pause_s: float
    key: str = KEY
    accepted: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    refused: list[str] = field(default_factory=list)
    accepted_at_s: list[float] = field(default_factory=list)
    postponed_at_s: list[float] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    fields: Mapping[str, object] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        fields = {
            "key": self.key,
            "image": disc_as_base64(),
            "resolution": 64,
            "texture_size": 512,
            "output_format": "obj",
        }
        while not stop.is_set():
            key = uuid.uuid4().hex
            body = {**fields, **self.fields, "webhook": self.webhook, "track_id": key, "seed": 1}
            while not self._submit(json.dumps(body).encode(), key):
                time.sleep(0.1)
            stop.wait(self.pause_s)

    def _submit(self, body: bytes, key: str) -> bool:
        headers = {"content-type": "application/json", "idempotency-key": key, "prefer": "wait=0"}
        request = urllib.request.Request(self.service.address + SUBMIT, body, headers)
        started_s = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                self.accepted[key].add(json.load(answer)["id"])
                self.accepted_at_s.append(time.monotonic())
        except urllib.error.HTTPError as error:
            if error.code == 503 and "retry-after" in error.headers:
                self.postponed_at_s.append(time.monotonic())
                return False
            self.refused.append(f"{error.code} {error.read()[:200]!r}")
        except (urllib.error.URLError, OSError, ValueError) as error:
            self.unanswered.append(repr(error))
            return False
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
        return True


@dataclass(frozen=True)
class Report:
    """The result of fault injection; `faults` is empty when nothing was lost, duplicated or left open."""

    accepted: int
    kills: int
    states: dict[str, int]
    attempts: int
    webhooks: int
    faults: list[str]

    @classmethod
    def of(cls, jobs: Collection[Job], receiver: Receiver, *, accepted: int, kills: int, faults: list[str]) -> Report:
        """Count what the store and the receiver of webhooks have."""
        return cls(
            accepted=accepted,
            kills=kills,
            states={state: sum(job.state == state for job in jobs) for state in sorted({job.state for job in jobs})},
            attempts=sum(job.attempts for job in jobs),
            webhooks=sum(len(deliveries) for deliveries in receiver.delivered.values()),
            faults=faults,
        )


def inject_faults(
    folder: Path, *, rounds: int, seed: int, workers: int = 2, clients: int = 2, pause_s: float = 1.0
) -> Report:
    """Kill a random process in each round, under load; then wait until every job has ended, and check the records."""
    rng = random.Random(seed)
    service = Service(folder / "data", workers=workers)
    stop = threading.Event()
    with Receiver() as receiver:
        senders = [Client(service, receiver.url, pause_s) for _ in range(clients)]
        threads = [threading.Thread(target=sender.run, args=(stop,)) for sender in senders]
        try:
            service.start()
            service.wait_until_ready()
            for thread in threads:
                thread.start()
            for _ in range(rounds):
                time.sleep(rng.uniform(0.2, 2.0))
                service.kill_one(rng)
            stop.set()
            for thread in threads:
                thread.join(120)
            accepted = {key: ids for sender in senders for key, ids in sender.accepted.items()}
            with opened(service) as store:
                wait_until_ended(store, receiver, accepted)
                faults = [f"refused: {answer}" for sender in senders for answer in sender.refused]
                faults += find_faults(store, receiver, accepted)
                jobs = store.list_jobs(JobFilter(None), limit=10**6)
        finally:
            stop.set()
            service.stop()
    return Report.of(jobs, receiver, accepted=len(accepted), kills=rounds, faults=faults)


@contextmanager
def opened(service: Service) -> Iterator[SqlStore]:
    store = open_store(Settings(data_dir=service.data, database_url=None))
    yield store
    store.close()


def wait_until_ended(
    store: SqlStore, receiver: Receiver, accepted: dict[str, set[int]], timeout_s: float = 600
) -> None:
    """Until no job is open and every webhook has arrived; in vain only when something is lost."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        is_open = store.metrics().states.keys() & {"queued", "running"}
        if not is_open and all(job_id in receiver.delivered for ids in accepted.values() for job_id in ids):
            return
        time.sleep(0.2)


def find_faults(
    store: SqlStore,
    receiver: Receiver,
    accepted: dict[str, set[int]],
    *,
    acceptable: frozenset[str] = ACCEPTABLE_ERRORS,
) -> list[str]:
    """Every violation of what the service promises, in words.

    Args:
        acceptable: error codes that a retryable job may have failed with.
    """
    faults = [f"submit {key} was answered with {len(ids)} jobs" for key, ids in accepted.items() if len(ids) != 1]
    promised = {job_id for ids in accepted.values() for job_id in ids}
    jobs = {job.id: job for job in store.list_jobs(JobFilter(None), limit=10**6)}
    ledger = [row.job_id for row in store.usage_rows(LedgerFilter(None), limit=10**6)]
    faults += [f"job {job_id} is lost" for job_id in promised - jobs.keys()]
    faults += [f"job {job_id} was never accepted" for job_id in jobs.keys() - promised]
    faults += [
        f"job {job_id} is {ledger.count(job_id)} times in the ledger" for job_id in jobs if ledger.count(job_id) != 1
    ]
    webhook_ids = [
        webhook_id for deliveries in receiver.delivered.values() for webhook_id in {one for one, _ in deliveries}
    ]
    if len(webhook_ids) != len(set(webhook_ids)):
        faults.append("two jobs share a webhook id")
    for job in jobs.values():
        faults += faults_of(job, receiver.delivered.get(job.id, []), acceptable=acceptable)
    return faults


def faults_of(job: Job, deliveries: list[tuple[str, dict[str, Any]]], *, acceptable: frozenset[str]) -> list[str]:
    """The violations of one ended job and of its webhook deliveries."""
    faults = []
    if not job.state.is_final or job.result is None:
        return [f"job {job.id} is still {job.state}"]
    if not deliveries:
        faults.append(f"job {job.id} has no webhook delivery")
    if len({webhook_id for webhook_id, _ in deliveries}) > 1:
        faults.append(f"job {job.id} has deliveries under several webhook ids")
    if any(body["status"] != ("success" if job.state is JobState.SUCCESS else "failed") for _, body in deliveries):
        faults.append(f"job {job.id} ended as {job.state}, but its webhook says otherwise")
    if job.state is JobState.FAILED and not (job.result.retryable and job.result.error_code in acceptable):
        faults.append(f"job {job.id} failed: {job.result.message}")
    if job.state is JobState.SUCCESS:
        urls = [url for _, body in deliveries for url in body["output"]]
        if not urls or {url.rpartition(".")[2] for url in urls} < {"obj", "mtl"}:
            faults.append(f"job {job.id} has incomplete outputs: {urls}")
        faults += [f"job {job.id}: {url} does not answer" for url in set(urls) if not answers(url)]
    return faults


def answers(url: str) -> bool:
    """Whether a URL serves a file that is not empty."""
    for _ in range(20):  # the web process may be restarting
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return len(answer.read()) > 0
        except urllib.error.HTTPError:
            return False
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return False
