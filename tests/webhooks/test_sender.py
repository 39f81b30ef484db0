"""Webhooks to real receivers on loopback: ones that answer, fail and hang."""

from __future__ import annotations

import json
import random
import socket
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from pipeline.answers import webhook_status
from pipeline.errors import BlockedAddress, NotFound, StoreUnavailable
from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import Job, JobResult, JobState, KeyLimits, NewJob, OutboxTask
from pipeline.jobs.store import Store
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.net.egress import guarded_client
from pipeline.webhooks.sender import Schedule, WebhookAttempt, WebhookDispatcher, WebhookSender
from pipeline.webhooks.signing import ROTATION_GRACE_S, WebhookSigner
from tests.net.policies import LAPTOP
from tests.reference.memory_store import MemoryStore

SIGNER = WebhookSigner([b"a master key, long enough"])
HOUR_S = 3600.0


class Clock:
    """The system's time, which signatures need, plus an offset that tests set."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Receiver:
    """A customer's server: the requests that it got, and its answers in their order, 200 after the last one."""

    url: str = ""
    answers: deque[Any] = field(default_factory=deque)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        answer = receiver.answers.popleft() if receiver.answers else 200
        if answer == "hang":
            receiver.release.wait(30)
        elif answer == "drip":
            self.drip(receiver)
        elif answer == "cut":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif answer == "endless":
            self.send_response(200)
            self.end_headers()
            while not receiver.release.is_set():
                self.wfile.write(b"x" * 65536)
        else:
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("location", f"{receiver.url}/elsewhere")
            self.end_headers()

    def drip(self, receiver: Receiver) -> None:
        """Send an answer's head, one byte at a time."""
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 10_000:
            if receiver.release.wait(0.05):
                return
            self.wfile.write(bytes([byte]))

    def log_message(self, format: str, *args: object) -> None:
        """The tests look at `got` instead."""


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: these tests close connections early."""


@contextmanager
def receiving(*answers: Any) -> Iterator[Receiver]:
    server = QuietServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(url=f"http://127.0.0.1:{server.server_address[1]}", answers=deque(answers))
    server.receiver = receiver  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with guarded_client(LAPTOP) as client:
        yield client


@pytest.fixture
def sender(client: httpx.Client, store: MemoryStore) -> WebhookSender:
    return WebhookSender(client, signer=SIGNER, key_of=store.get_key, connect_timeout_s=0.5, answer_timeout_s=0.5)


def ended_job(store: Store, webhook_url: str, *, key: str = "customer") -> Job:
    """A job that has just ended, with its webhook in the outbox."""
    record = store.add_key(key_record(f"key of {key}", name=key, limits=KeyLimits()))
    new = NewJob(api_key_id=record.id, file_prefix="p", request=b"{}", request_sha256="0", webhook_url=webhook_url)
    store.submit(new)
    job = store.claim("worker", lease_s=60)
    assert job is not None
    return store.complete(job.lease, JobResult(JobState.SUCCESS))


def webhook_of(store: Store, job: Job) -> OutboxTask:
    (task,) = store.tasks_of(job.id)
    return task


def body_of(task: OutboxTask) -> bytes:
    return json.dumps({"status": "success", "id": task.job_id, "track_id": "ä€"}, ensure_ascii=False).encode()


def dispatcher(store: Store, send: Callable[[OutboxTask, bytes], WebhookAttempt], **settings: Any) -> WebhookDispatcher:
    return WebhookDispatcher(store, send=send, body_of=body_of, rng=random.Random(1), **settings)


def errors_of(store: Store, job: Job) -> list[str]:
    return [attempt.error for attempt in store.attempts_of(webhook_of(store, job).id)]


# ---- one attempt ----


def send_due_webhooks(outbox: Any, sender: Any, body_of: Any, *, schedule: Schedule | None = None) -> int:
    """Send what is due and wait for the responses; returns the number of attempts."""
    return WebhookDispatcher(outbox, send=sender, body_of=body_of, schedule=schedule).send_due()


def test_a_receiver_gets_signed_json_once(store: MemoryStore, sender: WebhookSender):
    with receiving() as receiver:
        job = ended_job(store, f"{receiver.url}/hook?token=1")

        assert send_due_webhooks(store, sender, body_of) == 1
        assert send_due_webhooks(store, sender, body_of) == 0

    ((headers, body),) = receiver.got
    assert Webhook(SIGNER.secret_of(store.get_key(job.api_key_id))).verify(body, headers)["id"] == job.id
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == webhook_of(store, job).id
    task = webhook_of(store, job)
    assert (task.state, task.attempts, task.last_status, task.last_error) == ("done", 1, 200, "")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_success(store: MemoryStore, sender: WebhookSender, status: int):
    with receiving(status) as receiver:
        job = ended_job(store, receiver.url)
        send_due_webhooks(store, sender, body_of)

    assert webhook_of(store, job).state == "done"
    assert webhook_of(store, job).last_status == status


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (500, 500, "answered 500"),
        (404, 404, "answered 404"),
        (302, 302, "answered 302; redirects are not followed"),
        ("hang", None, "no answer within 0.5 s"),
        ("drip", None, "no answer within 0.5 s"),
        ("cut", None, "the connection broke before there was an answer"),
    ],
)
def test_any_other_answer_is_a_failed_attempt_on_record(
    store: MemoryStore, sender: WebhookSender, answer: Any, status: int | None, words: str
):
    with receiving(answer) as receiver:
        job = ended_job(store, receiver.url)
        send_due_webhooks(store, sender, body_of)

    assert len(receiver.got) == 1  # the redirect was not followed
    (attempt,) = store.attempts_of(webhook_of(store, job).id)
    assert (attempt.number, attempt.status, attempt.error) == (1, status, words)
    assert webhook_of(store, job).state == "pending"


def test_a_receiver_that_is_gone_gets_no_further_attempt_until_it_is_asked_for(
    store: MemoryStore, clock: Clock, sender: WebhookSender
):
    with receiving(410) as receiver:
        job = ended_job(store, receiver.url)
        for _ in range(5):
            send_due_webhooks(store, sender, body_of)
            clock.ahead_s += 1200

        assert len(receiver.got) == 1
        assert (
            webhook_status(store.tasks_of(job.id)) == "given up: answered 410: the receiver takes no webhooks any more"
        )

        store.redeliver(job.id, api_key_id=job.api_key_id)
        send_due_webhooks(store, sender, body_of)
        assert len(receiver.got) == 2


@pytest.mark.parametrize(
    ("asked", "least_s", "most_s"),
    [("900", 899, 901), ("1", 10, 15), ("soon", 10, 15), ("999999", 3599, 3601), ("", 10, 15)],
)
def test_a_receiver_that_asks_for_a_pause_gets_it(
    store: MemoryStore, clock: Clock, sender: WebhookSender, asked: str, least_s: float, most_s: float
):
    with receiving((429, {"retry-after": asked})) as receiver:
        job = ended_job(store, receiver.url)
        send_due_webhooks(store, sender, body_of)
        assert least_s <= webhook_of(store, job).next_attempt_at - clock() <= most_s


def test_a_receiver_that_asks_for_pauses_is_tried_until_the_window_ends(
    store: MemoryStore, clock: Clock, sender: WebhookSender
):
    with receiving(*[(503, {"retry-after": "3600"})] * 20) as receiver:
        job = ended_job(store, receiver.url)
        while webhook_of(store, job).state == "pending":
            send_due_webhooks(store, sender, body_of)
            clock.ahead_s += 60
    attempts = store.attempts_of(webhook_of(store, job).id)
    assert len(attempts) > 3 and attempts[-1].at - attempts[0].at > 7000


def test_an_answer_without_end_is_not_read(store: MemoryStore, sender: WebhookSender):
    with receiving("endless") as receiver:
        job = ended_job(store, receiver.url)
        send_due_webhooks(store, sender, body_of)

    assert webhook_of(store, job).state == "done"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/", "no connection: connection refused"),
        ("http://no-such-host.invalid/", "no connection: its name does not resolve"),
        ("https://127.0.0.1:{port}/", "no connection: it does not speak TLS as expected"),
        ("ftp://127.0.0.1/", "the address cannot be used"),
        ("http://127.0.0.1:port/", "the address cannot be used"),
    ],
)
def test_a_receiver_that_cannot_be_reached_is_a_failed_attempt_on_record(
    store: MemoryStore, sender: WebhookSender, url: str, words: str
):
    with receiving() as receiver:
        job = ended_job(store, url.format(port=receiver.url.rpartition(":")[2]))
        send_due_webhooks(store, sender, body_of)

    assert errors_of(store, job) == [words]


def test_an_address_that_the_guard_blocks_is_a_failed_attempt_on_record(store: MemoryStore):
    class Guard(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            raise BlockedAddress("169.254.169.254 is not an address for this service")

    with httpx.Client(transport=Guard()) as client:
        job = ended_job(store, "http://rebound.example/")
        send_due_webhooks(store, WebhookSender(client, signer=SIGNER, key_of=store.get_key), body_of)

    assert errors_of(store, job) == ["169.254.169.254 is not an address for this service"]


# ---- retries ----


def test_a_failed_webhook_is_sent_again_under_its_id_until_it_arrives(
    store: MemoryStore, sender: WebhookSender, clock: Clock
):
    with receiving(500, "cut", 503, 200) as receiver:
        job = ended_job(store, receiver.url)
        for _ in range(4):
            assert send_due_webhooks(store, sender, body_of) == 1
            assert send_due_webhooks(store, sender, body_of) == 0
            clock.ahead_s += webhook_of(store, job).next_attempt_at - clock()

    assert receiver.ids == [webhook_of(store, job).id] * 4
    assert webhook_of(store, job).state == "done"
    assert [attempt.status for attempt in store.attempts_of(webhook_of(store, job).id)] == [500, None, 503, 200]
    for headers, body in receiver.got:
        Webhook(SIGNER.secret_of(store.get_key(job.api_key_id))).verify(body, headers)


def test_each_attempt_is_signed_at_its_own_time(store: MemoryStore, client: httpx.Client, clock: Clock):
    sender = WebhookSender(client, signer=SIGNER, key_of=store.get_key, clock=clock)
    with receiving(500) as receiver:
        job = ended_job(store, receiver.url)
        send_due_webhooks(store, sender, body_of)
        clock.ahead_s += HOUR_S
        send_due_webhooks(store, sender, body_of)

    first, second = (int(headers["webhook-timestamp"]) for headers, _ in receiver.got)
    assert HOUR_S <= second - first <= HOUR_S + 10
    assert webhook_of(store, job).state == "done"


def test_after_a_rotation_both_secrets_verify_for_a_day_and_then_the_new_one(
    store: MemoryStore, client: httpx.Client, clock: Clock
):
    sender = WebhookSender(client, signer=SIGNER, key_of=store.get_key, clock=clock)
    key = store.add_key(key_record("key of customer", name="customer", limits=KeyLimits()))
    before = SIGNER.secret_of(key)
    after = SIGNER.secret_of(store.rotate_secret(key.id))
    with receiving() as receiver:
        for ahead_s in (0.0, ROTATION_GRACE_S + 1):
            clock.ahead_s = ahead_s
            ended_job(store, receiver.url)
            send_due_webhooks(store, sender, body_of)

    verified = [
        [signature in headers["webhook-signature"].split() for signature in signatures_of(headers, body, before, after)]
        for headers, body in receiver.got
    ]
    assert before != after
    assert verified == [[True, True], [False, True]]


def signatures_of(headers: dict[str, str], body: bytes, *secrets: str) -> list[str]:
    """What a receiver with each secret expects. `verify` would refuse the time of a shifted clock."""
    at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    return [Webhook(secret).sign(headers["webhook-id"], at, body.decode()) for secret in secrets]


def test_a_dead_receiver_is_given_up_after_ten_attempts_within_two_hours(store: MemoryStore, clock: Clock):
    job = ended_job(store, "http://dead.example/")
    began_at = clock()
    retrying = dispatcher(store, lambda task, body: WebhookAttempt(None, "no answer within 30 s", 30.0))

    while webhook_of(store, job).state == "pending":
        clock.ahead_s += max(webhook_of(store, job).next_attempt_at - clock(), 0) + 30
        assert retrying.send_due() == 1

    assert webhook_of(store, job).state == "given_up"
    assert webhook_of(store, job).attempts == 10
    assert 1.4 * HOUR_S < clock() - began_at < 2.05 * HOUR_S


def test_a_redelivery_has_the_old_id(store: MemoryStore, sender: WebhookSender):
    with receiving() as receiver:
        job = ended_job(store, receiver.url)
        send_due_webhooks(store, sender, body_of)
        store.redeliver(job.id, api_key_id=job.api_key_id)
        send_due_webhooks(store, sender, body_of)

    assert receiver.ids == [webhook_of(store, job).id] * 2


def test_webhooks_survive_a_restart_in_the_middle(tmp_path: Path, client: httpx.Client, clock: Clock):
    """The first process dies after the receiver got the webhook and before that was recorded."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    first = SqlStore(url, clock=clock)
    sender = WebhookSender(client, signer=SIGNER, key_of=first.get_key)
    with receiving(500) as receiver:
        job = ended_job(first, receiver.url)
        claimed = first.claim_task("webhook", claim_s=90)
        assert claimed is not None
        sender(claimed, body_of(claimed))
        first.close()

        second = SqlStore(url, clock=clock)
        sender = WebhookSender(client, signer=SIGNER, key_of=second.get_key)
        assert dispatcher(second, sender).send_due() == 0
        clock.ahead_s += 91
        assert dispatcher(second, sender).send_due() == 1

    assert receiver.ids == [claimed.id] * 2
    assert webhook_of(second, job).state == "done"
    assert len(second.attempts_of(claimed.id)) == 1
    second.close()


# ---- the schedule ----


def test_pauses_grow_are_jittered_and_fit_into_the_window():
    schedule = Schedule()
    runs = []
    for seed in range(200):
        rng = random.Random(seed)
        pauses = [schedule.pause_s(made, rng) for made in range(1, 10)]
        runs.append([pause for pause in pauses if pause is not None])

    assert all(len(run) == 9 and run == sorted(run) for run in runs)
    assert all(1.5 * HOUR_S < sum(run) <= 0.9 * 2 * HOUR_S for run in runs)
    assert all(10 < run[0] < 13 for run in runs)
    assert statistics.stdev(run[-1] for run in runs) > 60
    assert schedule.pause_s(10, random.Random(0)) is None


def test_a_schedule_of_one_attempt_never_pauses():
    assert Schedule(attempts=1).pause_s(1, random.Random(0)) is None


# ---- several at once ----


def test_receivers_that_hang_do_not_delay_other_webhooks(store: MemoryStore, client: httpx.Client):
    sender = WebhookSender(client, signer=SIGNER, key_of=store.get_key, answer_timeout_s=20.0)
    stop = threading.Event()
    with receiving(*["hang"] * 40) as hanging, receiving() as healthy:
        for _ in range(40):
            ended_job(store, hanging.url, key="with a dead receiver")
        jobs = [ended_job(store, healthy.url) for _ in range(40)]
        running = threading.Thread(target=dispatcher(store, sender, threads=8, per_key=4).run, args=(stop,))
        running.start()
        try:
            wait_until(lambda: all(webhook_of(store, job).state == "done" for job in jobs))
            assert len(hanging.got) <= 4
        finally:
            stop.set()
            hanging.release.set()
            running.join()

    assert sorted(healthy.ids) == sorted(webhook_of(store, job).id for job in jobs)


def test_a_key_whose_receiver_was_slow_to_fail_gets_one_sender_until_it_answers(store: MemoryStore):
    """Each attempt reports a long duration; the test counts how many run at once."""
    running, most, lock = 0, 0, threading.Lock()

    def slow(task: OutboxTask, body: bytes) -> WebhookAttempt:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return WebhookAttempt(None, "no answer within 30 s", 30.0)

    sending = dispatcher(store, slow, per_key=4, schedule=Schedule(attempts=1))
    ended_job(store, "http://dead.example/")
    sending.send_due()
    for _ in range(12):
        ended_job(store, "http://dead.example/")

    assert sending.send_due() == 12
    assert most == 1


def test_claimed_webhooks_that_no_sender_took_in_time_are_due_again(store: MemoryStore, clock: Clock):
    started = threading.Event()
    release = threading.Event()

    def blocked(task: OutboxTask, body: bytes) -> WebhookAttempt:
        started.set()
        release.wait(10)
        return WebhookAttempt(200, "", 0.0)

    for _ in range(3):
        ended_job(store, "http://slow.example/")
    stop = threading.Event()
    sending = dispatcher(store, blocked, per_key=1, claim_s=0.2)
    running = threading.Thread(target=sending.run, args=(stop,), kwargs={"poll_s": 0.01})
    running.start()
    started.wait(5)
    time.sleep(0.3)
    stop.set()
    time.sleep(0.3)  # the dispatcher drops what waits before its only sender is free: no fresh claim is launched
    release.set()
    running.join()

    clock.ahead_s += 1
    assert store.metrics().tasks_pending["webhook"] >= 1
    dispatcher(store, lambda task, body: WebhookAttempt(200, "", 0.0)).send_due()
    assert store.metrics().tasks_pending["webhook"] == 0


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition did not hold within 10 s")


# ---- a store that fails ----


class FlakyStore(MemoryStore):
    """Fails in the first calls of each method."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.failures = {"claim": 2, "settle": 1}

    def _fail_at_first(self, what: str) -> None:
        if self.failures[what] > 0:
            self.failures[what] -= 1
            is_last_claim = what == "claim" and self.failures[what] == 0
            raise RuntimeError("unexpected") if is_last_claim else StoreUnavailable("the database is locked")

    def claim_task(self, *args: Any, **named: Any) -> OutboxTask | None:
        self._fail_at_first("claim")
        return super().claim_task(*args, **named)

    def settle_task(self, *args: Any, **named: Any) -> OutboxTask:
        self._fail_at_first("settle")
        return super().settle_task(*args, **named)


def test_a_store_that_is_unavailable_for_a_moment_delays_webhooks_and_repeats_none(clock: Clock, client: httpx.Client):
    store = FlakyStore(clock)
    sender = WebhookSender(client, signer=SIGNER, key_of=store.get_key)
    stop = threading.Event()
    with receiving() as receiver:
        job = ended_job(store, receiver.url)
        running = threading.Thread(target=dispatcher(store, sender).run, args=(stop,), kwargs={"poll_s": 0.01})
        running.start()
        try:
            wait_until(lambda: webhook_of(store, job).state == "done")
        finally:
            stop.set()
            running.join()

    assert len(receiver.got) == 1


def test_a_job_deleted_before_or_during_an_attempt_is_ignored(store: MemoryStore):
    before, during = ended_job(store, "http://a.example/"), ended_job(store, "http://b.example/")

    def body_or_gone(task: OutboxTask) -> bytes:
        if task.job_id == before.id:
            raise NotFound("There is no such job.")
        return b"{}"

    def deleting(task: OutboxTask, body: bytes) -> WebhookAttempt:
        store.delete(task.job_id, api_key_id=None)
        return WebhookAttempt(200, "", 0.0)

    assert WebhookDispatcher(store, send=deleting, body_of=body_or_gone).send_due() == 1
    assert store.tasks_of(during.id) == []
