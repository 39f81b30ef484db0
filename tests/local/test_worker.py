"""The worker's wiring: what the cleaner deletes, GPU seconds in the ledger, and a job from the queue to the webhook."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.deployment import open_store
from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
from pipeline.errors import Cancelled, NotFound
from pipeline.job_handler import STALE_FOLDER_S, JobHandler, clean, folder_of
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey, Job, JobFilter, JobResult, JobState, KeyLimits, LedgerFilter
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.jobs.transitions import Retention
from pipeline.jobs.worker_loop import QueueWorker, WorkerOptions
from pipeline.local import worker
from pipeline.local.worker import has_space, repeat
from pipeline.run_job import Generate
from pipeline.service import open_service
from pipeline.settings import Settings
from pipeline.stages.generate import run_engine
from pipeline.storage.base import OutputFile
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from schemas.request import parse_request
from tests.e2e.external_dependencies import NotAvailable, filled, small_disk
from tests.e2e.faults import Receiver
from tests.fakes.images import disc_as_base64
from tests.jobs.store_fixtures import Clock, new_job
from tests.on_modal.containers import ScriptedEngine, fails, never, steps_until

WAIT_S = 60.0  # far longer than anything takes here; only a failing test waits this long


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=None, allow_private_addresses=True, stop_grace_s=0)


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
def store(settings: Settings, clock: Clock) -> Iterator[SqlStore]:
    opened = SqlStore(settings.sql_url, clock=clock, retention=Retention(record_lifetime_s=1000.0))
    yield opened
    opened.close()


@pytest.fixture
def temporary(settings: Settings, clock: Clock) -> LocalStorage:
    return LocalStorage(settings.files_dir, signer=LinkSigner([b"0" * 32]), clock=clock)


@pytest.fixture
def key(store: SqlStore) -> ApiKey:
    return store.add_key(make_key("tests", limits=KeyLimits())[1])


def running(store: SqlStore, key: ApiKey) -> Job:
    store.submit(new_job(key))
    job = store.claim("w", lease_s=30)
    assert job is not None
    return job


def make_folder(job: Job, settings: Settings, *, age_s: float) -> Path:
    folder = folder_of(job, settings.work_dir)
    folder.mkdir(parents=True)
    os.utime(folder, (time.time() - age_s, time.time() - age_s))
    return folder


def test_the_cleaner_keeps_the_folders_of_unfinished_jobs(
    settings: Settings, store: SqlStore, key: ApiKey, temporary: LocalStorage, clock: Clock
) -> None:
    open_job, ended = running(store, key), running(store, key)
    old_s = STALE_FOLDER_S + 60
    clock.now -= old_s
    store.complete(ended.lease, JobResult(JobState.FAILED))
    clock.now += old_s
    fresh = running(store, key)
    store.complete(fresh.lease, JobResult(JobState.FAILED))
    # A folder's own time decides nothing: a shared volume may not keep it.
    folders = [make_folder(job, settings, age_s=old_s) for job in (open_job, fresh)]
    folders.insert(1, make_folder(ended, settings, age_s=0))
    (settings.work_dir / "entries").mkdir()

    clean(store, temporary, settings.work_dir)

    assert [folder.exists() for folder in folders] == [True, False, True]
    assert (settings.work_dir / "entries").exists()


def test_the_cleaner_deletes_expired_records_and_outputs(
    settings: Settings, store: SqlStore, key: ApiKey, temporary: LocalStorage, clock: Clock, tmp_path: Path
) -> None:
    job, later = running(store, key), running(store, key)
    source = tmp_path / "a.glb"
    source.write_bytes(b"glb")
    for one in (job, later):
        temporary.store([OutputFile(source, "model", "model/gltf-binary")], file_prefix=one.file_prefix)
    store.complete(job.lease, JobResult(JobState.SUCCESS))
    clock.advance(1000)
    store.complete(later.lease, JobResult(JobState.SUCCESS))

    clean(store, temporary, settings.work_dir)

    with pytest.raises(NotFound):
        store.get(job.id, api_key_id=None)
    assert not (settings.files_dir / job.file_prefix).exists()
    assert store.get(later.id, api_key_id=None).state is JobState.SUCCESS
    assert (settings.files_dir / later.file_prefix / "a.glb").read_bytes() == b"glb"


def test_a_full_disk_has_no_space_for_jobs(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert has_space(folder)  # it does not exist yet
    try:
        with small_disk(folder):
            assert has_space(folder)
            with filled(folder):
                assert not has_space(folder)
            assert has_space(folder)
    except NotAvailable as reason:
        pytest.skip(str(reason))


def test_a_periodic_task_that_fails_runs_again() -> None:
    stop, times = threading.Event(), []

    def task() -> None:
        times.append(len(times))
        if len(times) == 3:
            stop.set()
        raise OSError("disk full")

    repeat(task, every_s=0.0, stop=stop)

    assert times == [0, 1, 2]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_a_worker_runs_a_job_from_the_queue_to_its_webhook(settings: Settings) -> None:
    stop = threading.Event()
    store = open_store(settings)
    owner = store.add_key(make_key("tests", limits=KeyLimits())[1])
    body = {"key": "k", "image": disc_as_base64(), "resolution": 64, "texture_size": 512, "seed": 5}
    request = parse_request(body, default_output_format="glb").request
    with Receiver() as receiver:
        new = new_job(owner, request=request.model_dump_json().encode(), webhook_url=receiver.url)
        job_id = store.submit(new).job.id
        thread = threading.Thread(target=worker.run_worker, args=(settings,), kwargs={"worker_id": "w", "stop": stop})
        thread.start()
        wait_until(lambda: job_id in receiver.delivered)
        stop.set()
        thread.join(WAIT_S)

    job = store.get(job_id, api_key_id=None)
    assert job.state is JobState.SUCCESS and job.result is not None
    assert job.result.meta["seed"] == 5
    assert job.result.artifacts[0].name == f"{job.file_prefix}.glb"
    webhook_id, webhook = receiver.delivered[job_id][0]
    assert (webhook["status"], webhook["id"]) == ("success", job_id)
    assert [task.id for task in store.tasks_of(job_id)] == [webhook_id]
    assert not folder_of(job, settings.work_dir).exists()
    store.close()


def local(engine: ScriptedEngine) -> Generate:
    """An engine in this process."""

    def generate(views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
        return run_engine(engine, views, options, on_step=on_step)

    return generate


def run_job_of(key: ApiKey, generate: Generate, *, settings: Settings, store: SqlStore, outputs: LocalStorage) -> Job:
    """Run a job from its submit to its end."""
    body = {"key": "k", "image": disc_as_base64(), "resolution": 64, "texture_size": 512}
    request = parse_request(body, default_output_format="glb").request
    job_id = store.submit(new_job(key, request=request.model_dump_json().encode())).job.id
    service = open_service(settings, store=store, temporary=outputs)
    work = JobHandler(service, outputs, lambda job, engine: generate)
    QueueWorker(store, work, WorkerOptions("w", heartbeat_interval_s=0.02)).run_one(threading.Event())
    service.http.close()
    return store.get(job_id, api_key_id=key.id)


def test_the_ledger_contains_the_gpu_seconds_of_a_failed_generation(
    settings: Settings, store: SqlStore, key: ApiKey, temporary: LocalStorage
) -> None:
    engine = ScriptedEngine(fails(ValueError("a shape"), after_s=0.05), gpu_seconds=1.0)

    job = run_job_of(key, local(engine), settings=settings, store=store, outputs=temporary)

    (row,) = store.usage_rows(LedgerFilter(key.id))
    assert job.result is not None and job.result.state is row.state is JobState.FAILED
    assert job.result.message == "engine preview failed for an internal reason (ValueError)"
    assert 0.05 <= row.gpu_seconds == job.result.gpu_seconds < job.result.stage_seconds["generate"]


def test_the_ledger_contains_the_gpu_seconds_of_a_cancelled_generation(
    settings: Settings, store: SqlStore, key: ApiKey, temporary: LocalStorage
) -> None:
    def cancel_and_continue(on_step: OnStep) -> None:
        (job,) = store.list_jobs(JobFilter(key.id))
        store.request_cancel(job.id, api_key_id=key.id)
        steps_until(never)(on_step)

    engine = ScriptedEngine(cancel_and_continue, gpu_seconds=1.0)

    job = run_job_of(key, local(engine), settings=settings, store=store, outputs=temporary)

    (row,) = store.usage_rows(LedgerFilter(key.id))
    assert job.result is not None and job.result.state is row.state is JobState.CANCELLED
    assert 0 < row.gpu_seconds == job.result.gpu_seconds < job.result.stage_seconds["generate"]


def test_the_ledger_contains_the_gpu_seconds_of_a_generation_that_finished_during_its_cancel(
    settings: Settings, store: SqlStore, key: ApiKey, temporary: LocalStorage
) -> None:
    def cancel_at_the_last_step(on_step: OnStep) -> None:
        (job,) = store.list_jobs(JobFilter(key.id))
        store.request_cancel(job.id, api_key_id=key.id)
        with suppress(Cancelled):
            steps_until(never)(on_step)

    engine = ScriptedEngine(cancel_at_the_last_step, gpu_seconds=3.0)

    run_job_of(key, local(engine), settings=settings, store=store, outputs=temporary)

    (row,) = store.usage_rows(LedgerFilter(key.id))
    assert (row.state, row.gpu_seconds) == (JobState.CANCELLED, 3.0)
