"""A real service while what surrounds it fails for a time: bucket, receiver, disk, database, clock.

Each scenario runs a service of its own under submits that never cease, lets one thing fail for so long, mends it, and
reports what was lost, doubled, left open or answered as it should not be. Used by the tests for a few seconds each and
by `scripts/benchmarks/outages.py` for a minute.
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
from pipeline.jobs.model import Job, JobState, KeyLimits, WorkerRecord
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.storage.s3 import NO_PUBLIC_ANSWER
from tests.e2e.external_dependencies import filled, locked, small_disk, stepped_clock
from tests.e2e.faults import EXCUSED, KEY, Client, Receiver, Service, find_faults, opened, wait_until_ended
from tests.servers.s3 import cut_in_the_middle, fault_proxy, free_port, moto_server

WORKERS = 2
PAUSE_S = 1.0
"""Between the submits of one caller, of whom there are two: about what two cores can work off."""
QUICK = {"no_texture": True}
WAIT_S = 150.0  # for what comes within seconds; only where something is lost is so long waited
LOOK_EVERY_S = 0.2
HEALTH_TIMEOUT_S = 5.0
FETCH = "/api/v1/enterprise/3d/fetch"
OTHER_KEY = "another-callers-key-with-some-length"
ACCESS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "never/shown"}
LONG_USE_WRITES = 2000
"""SQLite begins its log anew after 1000 pages, and every write takes one or more."""
OUT_OF_ROOM = EXCUSED | {"disk_full", "delivery_failed"}
"""A call that was running when the room ran out may fail: it says so, and the same request works later."""


@dataclass(frozen=True)
class Report:
    """What one outage came to; `faults` is empty when everything was as promised.

    Attributes:
        outage_s: how long it lasted.
        accepted: submits over the whole scenario.
        accepted_meanwhile: of them during the outage.
        put_off: answers during the outage that asked to try again.
        slowest_s: the longest wait for the answer to a submit.
        recovery_s: from the end of the outage to the next submit that was accepted.
        ended_s: from the last submit until every job had ended and every receiver knew.
        states: final states, by how many jobs ended so.
        notes: what else is worth knowing, in words.
    """

    name: str
    outage_s: float
    accepted: int
    accepted_meanwhile: int
    put_off: int
    slowest_s: float
    recovery_s: float
    ended_s: float
    states: Mapping[str, int]
    notes: tuple[str, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in self.states.items())
        parts = [
            f"{self.accepted} accepted ({self.accepted_meanwhile} meanwhile, {self.put_off} times put off)",
            f"slowest answer {self.slowest_s:.1f} s",
            f"accepting again after {self.recovery_s:.1f} s",
            f"all ended {self.ended_s:.0f} s after the last submit: {ends}",
            *self.notes,
            f"{len(self.faults)} faults" if self.faults else "no faults",
        ]
        return f"{self.name} for {self.outage_s:.0f} s: {'; '.join(parts)}"


class Scene:
    """A service, the callers that submit to it all the while, and somebody who looks whether it answers.

    Args:
        folder: takes the data and the log.
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
        """Let the callers submit, two with one key unless others are given."""
        self.clients = list(clients) or [self.caller(), self.caller()]
        duties = [lambda client=client: client.run(self._stop) for client in self.clients]
        self._threads = [threading.Thread(target=duty, daemon=True) for duty in (*duties, self._look_on)]
        for thread in self._threads:
            thread.start()

    def caller(self, *, is_flaky: bool = False, key: str = KEY) -> Client:
        """Somebody who submits, and is told at the receiver's sound or flaky address."""
        url = self.receiver.flaky_url if is_flaky else self.receiver.url
        return Client(self.service, url, PAUSE_S, key=key, fields=QUICK)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The block is the outage. Calls have ended and others run before it; every caller is accepted after it."""
        self._wait_for_accepts(after_s=float("-inf"))
        self.until(lambda: bool(self.receiver.told), else_fault="no call ends")
        self._began_s = time.monotonic()
        yield
        self._over_s = time.monotonic()
        self._wait_for_accepts(after_s=self._over_s)

    def until(self, is_true: Callable[[], bool], *, else_fault: str) -> None:
        """Wait for something that is to happen; note a fault when it does not."""
        deadline_s = time.monotonic() + WAIT_S
        while not is_true():
            if time.monotonic() > deadline_s:
                self.faults.append(else_fault)
                return
            time.sleep(0.05)

    def stop_submits(self) -> None:
        """Let every caller bring the submit that it is at to its end, and no further one."""
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
        """Every job on record, once all have ended and been told of."""
        wait_until_ended(store, self.receiver, self.accepted, WAIT_S)
        if self._ended_s is None:
            self._ended_s = time.monotonic() - self._last_submit_s
        return store.list_jobs(api_key_id=None, limit=10**6)

    def report(self, name: str, store: SqlStore, *notes: str, excused: frozenset[str] = EXCUSED) -> Report:
        """What became of everything, once submits have stopped; waits until all has ended."""
        jobs = self.wait_for_ends(store)
        for client in self.clients:
            self.faults += [f"a submit was refused: {answer}" for answer in client.refused]
            self.faults += [f"a submit got no answer: {reason}" for reason in client.unanswered]
        self.faults += find_faults(store, self.receiver, self.accepted, excused=excused)
        accepted_at_s = [at_s for client in self.clients for at_s in client.accepted_at_s]
        put_off_at_s = [at_s for client in self.clients for at_s in client.put_off_at_s]
        return Report(
            name=name,
            outage_s=self._over_s - self._began_s,
            accepted=len(accepted_at_s),
            accepted_meanwhile=sum(self._began_s <= at_s <= self._over_s for at_s in accepted_at_s),
            put_off=len(put_off_at_s),
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

    def _look_on(self) -> None:
        """Ask for the service's health and for a call, again and again; both are to be told throughout."""
        while not self._stop.wait(LOOK_EVERY_S):
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
                self.faults.append(f"the call {job_id} cannot be fetched: {error!r}")


def bucket_away(folder: Path, *, duration_s: float) -> Report:
    """The customer's S3 server takes no connection any more, and again does on its port, with what it held."""
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
                lambda: not store.metrics().tasks_pending.get("upload"), else_fault="files never come into the bucket"
            )
            late_s = time.monotonic() - back_s
            warned = [
                job_id
                for job_id, told in scene.receiver.told.items()
                if "Your bucket did not take the files" in told[0][1]["warning"]
            ]
            if not warned:
                scene.faults.append("no job says that its files are in temporary storage")
            jobs = store.list_jobs(api_key_id=None, limit=10**6)
            for job in jobs:
                scene.faults += _not_in_bucket(job, url)
            cut_off = sum(job.result is not None and NO_PUBLIC_ANSWER in job.result.warnings for job in jobs)
            if cut_off > WORKERS:
                scene.faults.append(
                    f"{cut_off} jobs say that their public address did not answer, though only {WORKERS} can have been "
                    "about to ask there when the bucket went"
                )
            return scene.report(
                "bucket away",
                store,
                f"{len(warned)} jobs told with a warning, all files in the bucket {late_s:.0f} s after it was back",
            )


def receiver_hangs(folder: Path, *, duration_s: float) -> Report:
    """One caller's webhooks are accepted and never answered; another caller's arrive while that goes on."""
    times = {"webhook_timeout_s": max(1.0, duration_s / 4), "webhook_window_s": max(60.0, 10 * duration_s)}
    with Scene(folder, **times) as scene, opened(scene.service) as store:
        store.add_key(key_record(OTHER_KEY, name="other", limits=KeyLimits()))
        hung, other = scene.caller(is_flaky=True), scene.caller(key=OTHER_KEY)
        scene.begin(hung, other)
        with scene.outage(), scene.receiver.hanging():
            told_before = set(scene.receiver.told)
            time.sleep(duration_s)
            meanwhile = [job_id for ids in list(other.accepted.values()) for job_id in ids]
            scene.until(
                lambda: all(job_id in scene.receiver.told for job_id in meanwhile),
                else_fault="another caller's webhooks wait for a receiver that hangs",
            )
            through = [job_id for ids in list(hung.accepted.values()) for job_id in ids - told_before]
            if any(job_id in scene.receiver.told for job_id in through) or not scene.receiver.unanswered:
                scene.faults.append("the receiver did not hang")
        scene.stop_submits()
        jobs = {job.id: job for job in scene.wait_for_ends(store)}
        waits_s = [
            scene.receiver.told_at[job_id] - (jobs[job_id].finished_at or 0.0)
            for job_id in meanwhile
            if job_id in scene.receiver.told_at
        ]
        return scene.report(
            "receiver hangs",
            store,
            f"{scene.receiver.unanswered} attempts hung",
            f"the other caller was told of {len(waits_s)} jobs, at most {max(waits_s):.1f} s after their end",
        )


def disk_full(folder: Path, *, duration_s: float) -> Report:
    """No byte is free where the data lie, also when the service gives some back."""
    with small_disk(folder / "data"), Scene(folder) as scene:
        _use_for_long(scene.service)
        scene.begin()
        with scene.outage(), filled(folder / "data"):
            time.sleep(duration_s)
        scene.stop_submits()
        with opened(scene.service) as store:
            jobs = scene.wait_for_ends(store)
            failed = sum(job.state is JobState.FAILED for job in jobs)
            if failed > WORKERS:
                scene.faults.append(
                    f"{failed} jobs failed for want of room, though only {WORKERS} can have been running"
                )
            return scene.report("disk full", store, f"{failed} failed for want of room", excused=OUT_OF_ROOM)


def database_locked(folder: Path, *, duration_s: float) -> Report:
    """Another process holds SQLite's write lock and does nothing with it."""
    with Scene(folder) as scene:
        scene.begin()
        with scene.outage(), locked(folder / "data" / "jobs.sqlite"):
            time.sleep(duration_s)
        scene.stop_submits()
        with opened(scene.service) as store:
            again = sum(job.attempts > 1 for job in scene.wait_for_ends(store))
            return scene.report("database locked", store, f"{again} jobs taken up again")


def clock_steps(folder: Path, *, duration_s: float, step_s: int = 5400) -> Report:
    """The system clock is set back while jobs run and webhooks wait for their next attempt, and forward again."""
    environment, turn = stepped_clock(folder)
    with (
        Scene(folder, environment=environment, webhook_timeout_s=1, webhook_window_s=60) as scene,
        opened(scene.service) as store,
    ):
        scene.begin(scene.caller(is_flaky=True), scene.caller(is_flaky=True))
        with scene.receiver.hanging():
            scene.until(lambda: _are_put_off(store), else_fault="no webhook waits for its next attempt")
            before = [job_id for ids in scene.accepted.values() for job_id in ids]
            turn(-step_s)
        with scene.outage():
            time.sleep(duration_s)
            scene.until(
                lambda: scene.receiver.told.keys() >= {*before},
                else_fault="what was due before the clock was set back waits until it has caught up",
            )
            turn(0)
        scene.stop_submits()
        early = sum(job.created_at < time.time() - step_s / 2 for job in scene.wait_for_ends(store))
        if not early:
            scene.faults.append("the service's clock did not step back")
        return scene.report("clock set back", store, f"{early} jobs accepted in the past")


def _use_for_long(service: Service) -> None:
    """Bring the database to the size of one that has been written to for long: it then has room for much within."""
    with opened(service) as store:
        for _ in range(LONG_USE_WRITES):
            store.heartbeat_worker(WorkerRecord("a worker of the past", "preview", seen_at=0.0, is_ready=True))
        store.deregister_worker("a worker of the past")


def _are_put_off(store: SqlStore) -> bool:
    """Whether some webhook was tried in vain and waits."""
    jobs = store.list_jobs(api_key_id=None, state=JobState.SUCCESS, limit=10**6)
    return any(task.attempts and task.state == "pending" for job in jobs for task in store.tasks_of(job.id))


def _post(service: Service, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json", "prefer": "wait=0"}
    request = urllib.request.Request(service.address + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _not_in_bucket(job: Job, url: str) -> list[str]:
    """Which files of a job its record does not place in the bucket, or are not there as they were delivered."""
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
                faults.append(f"job {job.id}: the bucket holds something else than {artifact.name}")
    if job.result is not None and set(job.result.all_warnings) - {NO_PUBLIC_ANSWER}:
        faults.append(f"job {job.id} still warns: {job.result.warnings}")
    return faults


SCENARIOS = (bucket_away, receiver_hangs, disk_full, database_locked, clock_steps)
