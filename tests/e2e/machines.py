"""Several machines as one service: web processes and workers with folders of their own, which share a database behind
pgbouncer and a bucket, and are killed under load.

The tests kill each process once, `python -m scripts.benchmarks machines` many times. There is no supervisor: what was
killed is started again, as a scheduler does.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from pydantic import SecretStr

from pipeline.deployment import ensure_key, open_store
from pipeline.jobs.model import JobFilter
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.settings import Settings
from pipeline.storage.s3_client import Bucket, make_client
from tests.e2e.faults import KEY, ROOT, Client, Receiver, Report, find_faults, wait_until_ended
from tests.servers.pgbouncer import pooler
from tests.servers.postgres import running_server
from tests.servers.s3 import free_port, moto_server

BUCKET = "outputs"
WEB, WORKERS = 2, 3
START_S = 60.0


@dataclass
class Machine:
    """One process in a folder of its own, as the only one of its machine."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@dataclass
class Machines:
    """The machines of one deployment, and its database."""

    webs: list[Machine]
    workers: list[Machine]
    addresses: list[str]
    settings: Settings
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    @property
    def address(self) -> str:
        """Any of the web processes, as a load balancer chooses."""
        return self.rng.choice(self.addresses)

    @property
    def all(self) -> list[Machine]:
        return [*self.webs, *self.workers]

    def wait_until_ready(self) -> None:
        for address in self.addresses:
            deadline_s = time.monotonic() + START_S
            while not _answers(f"{address}/ready"):
                assert time.monotonic() < deadline_s, f"{address} is not ready"
                time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running_machines(folder: Path) -> Iterator[Machines]:
    """Start everything, and stop it afterwards."""
    with ExitStack() as stack:
        database_url = stack.enter_context(pooler(stack.enter_context(running_server())))
        s3 = stack.enter_context(moto_server(_made(folder / "s3")))
        with httpx.Client() as http:
            bucket = Bucket(s3, BUCKET, "us-east-1", True, "", "", "id", "secret-key")
            make_client(bucket, http).create_bucket(Bucket=BUCKET)
        ports = [free_port() for _ in range(WEB)]
        given = {
            "DATABASE_URL": database_url,
            "OUTPUTS_URL": f"s3://{BUCKET}/a/prefix",
            "OUTPUTS_ENDPOINT_URL": s3,
            "OUTPUTS_ACCESS_KEY_ID": "id",
            "OUTPUTS_SECRET_ACCESS_KEY": "secret-key",
            "SECRET_KEYS": "the secret that all machines have",
            "PUBLIC_URL": f"http://127.0.0.1:{ports[0]}",
            "API_KEY": KEY,
            "ALLOW_PRIVATE_ADDRESSES": 1,
            "DATABASE_POOL_SIZE": 2,
            "LEASE_S": 4,
            "MAX_QUEUED": 0,
            "MAX_PER_MINUTE": 0,
            "STOP_GRACE_S": 5,
        }
        environment = ["env", "-u", "DATABASE_URL", *(f"IMAGE_TO_3D_{name}={value}" for name, value in given.items())]

        def machine(name: str, *command: str) -> Machine:
            data = str(folder / name)
            return Machine(name, [*environment, sys.executable, *command, "--data", data], folder / f"{name}.log")

        settings = Settings(data_dir=folder / "operator", database_url=SecretStr(database_url), api_key=SecretStr(KEY))
        store = open_store(settings)
        ensure_key(store, settings)
        store.close()
        machines = Machines(
            [
                machine(f"web{number}", "-m", "pipeline.cli", "web", "--port", str(port))
                for number, port in enumerate(ports)
            ],
            [machine(f"worker{number}", "-m", "pipeline.local.worker") for number in range(WORKERS)],
            [f"http://127.0.0.1:{port}" for port in ports],
            settings,
        )
        try:
            for one in machines.all:
                one.start()
            machines.wait_until_ready()
            yield machines
        finally:
            for one in machines.all:
                one.stop()


def kill_machines(folder: Path, *, rounds: int, seed: int, clients: int = 2, pause_s: float = 1.0) -> Report:
    """Kill each process once in each round, under load; then wait until every job has ended, and check the records."""
    rng = random.Random(seed)
    stop = threading.Event()
    kills = 0
    with running_machines(folder) as machines, Receiver() as receiver:
        senders = [Client(machines, receiver.url, pause_s) for _ in range(clients)]
        threads = [threading.Thread(target=sender.run, args=(stop,)) for sender in senders]
        try:
            for thread in threads:
                thread.start()
            for _ in range(rounds):
                for one in rng.sample(machines.all, len(machines.all)):
                    time.sleep(rng.uniform(0.5, 2.0))
                    one.kill()
                    one.start()
                    kills += 1
        finally:
            stop.set()
        for thread in threads:
            thread.join(120)
        machines.wait_until_ready()
        accepted = {key: ids for sender in senders for key, ids in sender.accepted.items()}
        store = open_store(machines.settings)
        wait_until_ended(store, receiver, accepted)
        faults = [f"refused: {answer}" for sender in senders for answer in sender.refused]
        faults += find_faults(store, receiver, accepted)
        faults += differing_files(store, machines)
        jobs = store.list_jobs(JobFilter(None), limit=10**6)
        store.close()
    return Report.of(jobs, receiver, accepted=len(accepted), kills=kills, faults=faults)


def differing_files(store: SqlStore, machines: Machines) -> list[str]:
    """Files that one of the web processes does not serve as the other does."""
    faults: list[str] = []
    with httpx.Client(timeout=30) as http:
        for job in store.list_jobs(JobFilter(None), limit=10**6):
            for artifact in job.result.artifacts if job.result is not None else ():
                path = artifact.url.removeprefix(machines.addresses[0])
                answers = [http.get(address + path) for address in machines.addresses]
                seen = {(answer.status_code, answer.content, answer.headers.get("etag")) for answer in answers}
                if len(seen) != 1 or answers[0].status_code != 200 or len(answers[0].content) != artifact.size_bytes:
                    faults.append(f"job {job.id}: {path} is {[answer.status_code for answer in answers]}")
    return faults


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
