"""Runs a real service while an external dependency fails for a time: bucket, receiver, disk, database, clock.

Each scenario runs a service of its own under continuous submits, makes one dependency fail for a duration, restores it,
and reports what was lost, duplicated, left open or answered wrongly. The tests run a few seconds of each, `python -m
scripts.benchmarks outages` a minute.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import Job, JobFilter, JobState, KeyLimits, WorkerRecord
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.storage.s3 import NO_PUBLIC_ANSWER
from tests.e2e.external_dependencies import filled, locked, small_disk, stepped_clock
from tests.e2e.faults import ACCEPTABLE_ERRORS, KEY, Client, Receiver, Service, find_faults, opened, wait_until_ended
from tests.servers.s3 import cut_in_the_middle, fault_proxy, free_port, moto_server

WORKERS = 2
PAUSE_S = 1.0
"""Between the submits of one caller; the submits of two callers are about what two cores can process."""
QUICK = {"no_texture": True}
WAIT_S = 150.0  # for what takes seconds; the whole time passes only if something is lost
PROBE_INTERVAL_S = 0.2
HEALTH_TIMEOUT_S = 5.0
FETCH = "/api/v1/enterprise/3d/fetch"
OTHER_KEY = "another-callers-key-with-some-length"
ACCESS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "never/shown"}
LONG_USE_WRITES = 2000
"""SQLite restarts its write-ahead log after 1000 pages, and every write takes at least one."""
DISK_FULL_ERRORS = ACCEPTABLE_ERRORS | {"disk_full", "delivery_failed"}
"""A job that was running when the disk filled up may fail with these codes; the same request works later."""


@dataclass(frozen=True)
class Report:
    """The result of one outage; `faults` is empty when the service kept its promises.

    Attributes:
        outage_s: duration of the outage.
        accepted: submits accepted over the whole scenario.
        accepted_meanwhile: those of them during the outage.
        postponed: answers during the outage that asked to retry.
        slowest_s: the longest wait for the answer to a submit.
        recovery_s: from the end of the outage to the next accepted submit.
        ended_s: from the last submit until every job had ended and every webhook was delivered.
        states: number of jobs by final state.
        notes: further observations, in words.
    """

    name: str
    outage_s: float
    accepted: int
    accepted_meanwhile: int
    postponed: int
    slowest_s: float
    recovery_s: float
    ended_s: float
    states: Mapping[str, int]
    notes: tuple[str, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in self.states.items())
        parts = [
            f"{self.accepted} accepted ({self.accepted_meanwhile} meanwhile, {self.postponed} postponed)",
            f"slowest answer {self.slowest_s:.1f} s",
            f"accepting again after {self.recovery_s:.1f} s",
            f"all ended {self.ended_s:.0f} s after the last submit: {ends}",
            *self.notes,
            f"{len(self.faults)} faults" if self.faults else "no faults",
        ]
        return f"{self.name} for {self.outage_s:.0f} s: {'; '.join(parts)}"


class Scene:
    """A service, the callers that submit to it continuously, and a probe of its health.

    Args:
        folder: for the data and the log.
        environment, settings: as for `Service`.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None, **settings: object) -> None:
        self.service = Service(folder / "data", workers=WORKERS, environment=environment, **settings)
        self.receiver = Receiver()
        self.clients: list[Client] = []
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._began_s = self._over_s = self._last_submit_s = 0.0
        self._ended_s: float | None = None

    def __enter__(self) -> Scene:
        self.receiver.__enter__()
        self.service.start()
        self.service.wait_until_ready()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.service.stop()
        self.receiver.__exit__()

    def begin(self, *clients: Client) -> None:
        """Start the callers: two with one key unless others are given."""
        self.clients = list(clients) or [self.caller(), self.caller()]
        loops = [lambda client=client: client.run(self._stop) for client in self.clients]
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (*loops, self._probe)]
        for thread in self._threads:
            thread.start()

    def caller(self, *, is_flaky: bool = False, key: str = KEY) -> Client:
        """A client whose webhooks go to the receiver's normal or flaky address."""
        url = self.receiver.flaky_url if is_flaky else self.receiver.url
        return Client(self.service, url, PAUSE_S, key=key, fields=QUICK)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Run the block as the outage. Jobs have ended and others run before it; every caller submits after it."""
        self._wait_for_accepts(after_s=float("-inf"))
        self.until(lambda: bool(self.receiver.delivered), else_fault="no job ends")
        self._began_s = time.monotonic()
        yield
        self._over_s = time.monotonic()
        self._wait_for_accepts(after_s=self._over_s)

    def until(self, is_true: Callable[[], bool], *, else_fault: str) -> None:
        """Wait until a condition holds; record a fault if it does not."""
        deadline_s = time.monotonic() + WAIT_S
        while not is_true():
            if time.monotonic() > deadline_s:
                self.faults.append(else_fault)
                return
            time.sleep(0.05)

    def stop_submits(self) -> None:
        """Let every caller finish its current submit, and stop."""
        self._stop.set()
        self._last_submit_s = time.monotonic()
        for thread in self._threads:
            thread.join(WAIT_S)
            if thread.is_alive():
                self.faults.append("a submit is never accepted")

    @property
    def accepted(self) -> dict[str, set[int]]:
        """Ids by idempotency key, over all callers."""
        return {key: ids for client in self.clients for key, ids in client.accepted.items()}

    def wait_for_ends(self, store: SqlStore) -> list[Job]:
        """Every job, once all have ended and their webhooks are delivered."""
        wait_until_ended(store, self.receiver, self.accepted, WAIT_S)
        if self._ended_s is None:
            self._ended_s = time.monotonic() - self._last_submit_s
        return store.list_jobs(JobFilter(None), limit=10**6)

    def report(self, name: str, store: SqlStore, *notes: str, acceptable: frozenset[str] = ACCEPTABLE_ERRORS) -> Report:
        """The report, once submits have stopped; waits until every job has ended."""
        jobs = self.wait_for_ends(store)
        for client in self.clients:
            self.faults += [f"a submit was refused: {answer}" for answer in client.refused]
            self.faults += [f"a submit got no answer: {reason}" for reason in client.unanswered]
        self.faults += find_faults(store, self.receiver, self.accepted, acceptable=acceptable)
        accepted_at_s = [at_s for client in self.clients for at_s in client.accepted_at_s]
        postponed_at_s = [at_s for client in self.clients for at_s in client.postponed_at_s]
        return Report(
            name=name,
            outage_s=self._over_s - self._began_s,
            accepted=len(accepted_at_s),
            accepted_meanwhile=sum(self._began_s <= at_s <= self._over_s for at_s in accepted_at_s),
            postponed=len(postponed_at_s),
            slowest_s=max(client.slowest_s for client in self.clients),
            recovery_s=min((at_s for at_s in accepted_at_s if at_s > self._over_s), default=float("inf"))
            - self._over_s,
            ended_s=self._ended_s or 0.0,
            states={state: sum(job.state == state for job in jobs) for state in sorted({job.state for job in jobs})},
            notes=notes,
            faults=tuple(self.faults),
        )

    def _wait_for_accepts(self, *, after_s: float) -> None:
        self.until(
            lambda: all(any(at_s > after_s for at_s in client.accepted_at_s) for client in self.clients),
            else_fault=f"a caller is not accepted within {WAIT_S:g} s",
        )

    def _probe(self) -> None:
        """Request the service's health and a job repeatedly; both must answer throughout."""
        while not self._stop.wait(PROBE_INTERVAL_S):
            try:
                urllib.request.urlopen(f"{self.service.address}/health", timeout=HEALTH_TIMEOUT_S).close()
            except OSError as error:
                self.faults.append(f"/health does not answer: {error!r}")
            job_id = next(iter(next(iter(list(self.clients[0].accepted.values())), ())), None)
            if job_id is None:
                continue
            try:
                _post(self.service, f"{FETCH}/{job_id}", {"key": self.clients[0].key})
            except OSError as error:
                self.faults.append(f"job {job_id} cannot be fetched: {error!r}")


def bucket_away(folder: Path, *, duration_s: float) -> Report:
    """The customer's S3 server accepts no connection, then does again on its port, with its objects."""
    port = free_port()
    with Scene(folder) as scene, moto_server(folder) as behind, ExitStack() as front:
        proxy = front.enter_context(fault_proxy(behind, port=port))
        url = proxy.url
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **ACCESS).create_bucket(Bucket="models")
        where = {"public_url": f"{url}/models/", "region_name": "us-east-1", "endpoint_url": f"{url}/models"}
        _post(scene.service, "/api/v1/enterprise/update_s3", {"key": KEY, "deploy_type": "3d", **where, **ACCESS})
        scene.begin()
        with scene.outage():
            proxy.add(lambda seen: True, cut_in_the_middle)  # over connections that are open
            front.close()  # no further ones
            time.sleep(duration_s)
            front.enter_context(fault_proxy(behind, port=port))
        back_s = time.monotonic()
        scene.stop_submits()
        with opened(scene.service) as store:
            scene.wait_for_ends(store)
            scene.until(
                lambda: not store.metrics().tasks_pending.get("upload"), else_fault="the files never reach the bucket"
            )
            late_s = time.monotonic() - back_s
            warned = [
                job_id
                for job_id, deliveries in scene.receiver.delivered.items()
                if "Your bucket did not accept the files" in deliveries[0][1]["warning"]
            ]
            if not warned:
                scene.faults.append("no job says that its files are in temporary storage")
            jobs = store.list_jobs(JobFilter(None), limit=10**6)
            for job in jobs:
                scene.faults += _not_in_bucket(job, url)
            cut_off = sum(job.result is not None and NO_PUBLIC_ANSWER in job.result.warnings for job in jobs)
            if cut_off > WORKERS:
                scene.faults.append(
                    f"{cut_off} jobs say that their public address did not answer, though only {WORKERS} can have been "
                    "checking it when the bucket failed"
                )
            return scene.report(
                "bucket away",
                store,
                f"{len(warned)} webhooks with a warning, all files in the bucket {late_s:.0f} s after it was back",
            )


def receiver_hangs(folder: Path, *, duration_s: float) -> Report:
    """One caller's webhooks are accepted and never answered; meanwhile another caller's are delivered."""
    times = {"webhook_timeout_s": max(1.0, duration_s / 4), "webhook_window_s": max(60.0, 10 * duration_s)}
    with Scene(folder, **times) as scene, opened(scene.service) as store:
        store.add_key(key_record(OTHER_KEY, name="other", limits=KeyLimits()))
        hung, other = scene.caller(is_flaky=True), scene.caller(key=OTHER_KEY)
        scene.begin(hung, other)
        with scene.outage(), scene.receiver.hanging():
            delivered_before = set(scene.receiver.delivered)
            time.sleep(duration_s)
            meanwhile = [job_id for ids in list(other.accepted.values()) for job_id in ids]
            scene.until(
                lambda: all(job_id in scene.receiver.delivered for job_id in meanwhile),
                else_fault="another caller's webhooks wait for a receiver that hangs",
            )
            through = [job_id for ids in list(hung.accepted.values()) for job_id in ids - delivered_before]
            if any(job_id in scene.receiver.delivered for job_id in through) or not scene.receiver.unanswered:
                scene.faults.append("the receiver did not hang")
        scene.stop_submits()
        jobs = {job.id: job for job in scene.wait_for_ends(store)}
        waits_s = [
            scene.receiver.delivered_at[job_id] - (jobs[job_id].finished_at or 0.0)
            for job_id in meanwhile
            if job_id in scene.receiver.delivered_at
        ]
        return scene.report(
            "receiver hangs",
            store,
            f"{scene.receiver.unanswered} attempts hung",
            f"the other caller got {len(waits_s)} webhooks, at most {max(waits_s):.1f} s after their end",
        )


def disk_full(folder: Path, *, duration_s: float) -> Report:
    """The data folder's file system is full, also when the service frees space."""
    with small_disk(folder / "data"), Scene(folder) as scene:
        _age_database(scene.service)
        scene.begin()
        with scene.outage(), filled(folder / "data"):
            time.sleep(duration_s)
        scene.stop_submits()
        with opened(scene.service) as store:
            jobs = scene.wait_for_ends(store)
            failed = sum(job.state is JobState.FAILED for job in jobs)
            if failed > WORKERS:
                scene.faults.append(
                    f"{failed} jobs failed because the disk was full, though only {WORKERS} can have been running"
                )
            return scene.report(
                "disk full", store, f"{failed} failed because the disk was full", acceptable=DISK_FULL_ERRORS
            )


def database_locked(folder: Path, *, duration_s: float) -> Report:
    """Another process holds SQLite's write lock."""
    with Scene(folder) as scene:
        scene.begin()
        with scene.outage(), locked(folder / "data" / "jobs.sqlite"):
            time.sleep(duration_s)
        scene.stop_submits()
        with opened(scene.service) as store:
            again = sum(job.attempts > 1 for job in scene.wait_for_ends(store))
            return scene.report("database locked", store, f"{again} jobs requeued")


def clock_steps(folder: Path, *, duration_s: float, step_s: int = 5400) -> Report:
    """The system clock is set back while jobs run and webhooks wait for their next attempt, and forward again."""
    environment, set_clock = stepped_clock(folder)
    with (
        Scene(folder, environment=environment, webhook_timeout_s=1, webhook_window_s=60) as scene,
        opened(scene.service) as store,
    ):
        scene.begin(scene.caller(is_flaky=True), scene.caller(is_flaky=True))
        with scene.receiver.hanging():
            scene.until(lambda: _are_postponed(store), else_fault="no webhook waits for its next attempt")
            before = [job_id for ids in scene.accepted.values() for job_id in ids]
            set_clock(-step_s)
        with scene.outage():
            time.sleep(duration_s)
            scene.until(
                lambda: scene.receiver.delivered.keys() >= {*before},
                else_fault="webhooks that were due before the clock was set back wait until it has caught up",
            )
            set_clock(0)
        scene.stop_submits()
        early = sum(job.created_at < time.time() - step_s / 2 for job in scene.wait_for_ends(store))
        if not early:
            scene.faults.append("the service's clock did not step back")
        return scene.report("clock set back", store, f"{early} jobs accepted in the past")


def _age_database(service: Service) -> None:
    """Grow the database to the size of one in long use: it then has free pages inside."""
    with opened(service) as store:
        for _ in range(LONG_USE_WRITES):
            store.heartbeat_worker(WorkerRecord("a worker of the past", "preview", seen_at=0.0, is_ready=True))
        store.deregister_worker("a worker of the past")


def _are_postponed(store: SqlStore) -> bool:
    """Whether a failed webhook waits for its next attempt."""
    jobs = store.list_jobs(JobFilter(None, state=JobState.SUCCESS), limit=10**6)
    return any(task.attempts and task.state == "pending" for job in jobs for task in store.tasks_of(job.id))


def _post(service: Service, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json", "prefer": "wait=0"}
    request = urllib.request.Request(service.address + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _not_in_bucket(job: Job, url: str) -> list[str]:
    """The files of a job that its record does not place in the bucket, or that the bucket does not hold unchanged."""
    faults = []
    for artifact in () if job.result is None else job.result.artifacts:
        if not artifact.url.startswith(f"{url}/models/"):
            faults.append(f"job {job.id}: {artifact.name} is not in the bucket but at {artifact['url']}")
            continue
        try:
            with urllib.request.urlopen(artifact.url, timeout=10) as answer:
                digest = hashlib.sha256(answer.read()).hexdigest()
        except urllib.error.HTTPError as error:
            faults.append(f"job {job.id}: the bucket answers {error.code} for {artifact.name}")
        else:
            if digest != artifact.sha256:
                faults.append(f"job {job.id}: the bucket holds other content than {artifact.name}")
    expected = {NO_PUBLIC_ANSWER, job.result.meta.get("draft_notice") if job.result is not None else None}
    if job.result is not None and set(job.result.all_warnings) - expected:
        faults.append(f"job {job.id} still warns: {job.result.warnings}")
    return faults


SCENARIOS = (bucket_away, receiver_hangs, disk_full, database_locked, clock_steps)
