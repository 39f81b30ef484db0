"""The worker's wiring: what it keeps of a call, what it cleans up, and a whole call from the queue to the webhook."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import worker
from pipeline.call import CallOutcome
from pipeline.deployment import open_store
from pipeline.errors import NotFound
from pipeline.jobs.keys import make_key
from pipeline.jobs.record import ApiKey, Ending, Job, JobState, KeyLimits
from pipeline.jobs.sql import SqlStore
from pipeline.settings import Settings
from pipeline.storage.base import Artifact, OutputFile
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.worker import STALE_FOLDER_S, clean, ending_of, folder_of, has_room, repeat
from schemas.request import parse_request
from scripts.bench_serve import picture
from tests.e2e.faults import Receiver
from tests.e2e.surroundings import NotHere, filled, small_disk
from tests.jobs.conftest import Clock, new_job

WAIT_S = 60.0  # far longer than anything takes here; only a failing test waits so long


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=None, allow_private_addresses=True, stop_grace_s=0)


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
def store(settings: Settings, clock: Clock) -> Iterator[SqlStore]:
    opened = SqlStore(settings.sql_url, clock=clock, record_lifetime_s=1000.0)
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
    job = store.take("w", lease_s=30)
    assert job is not None
    return job


def make_folder(job: Job, settings: Settings, *, age_s: float) -> Path:
    folder = folder_of(job, settings.work_dir)
    folder.mkdir(parents=True)
    os.utime(folder, (time.time() - age_s, time.time() - age_s))
    return folder


def test_an_outcome_is_kept_whole() -> None:
    artifact = Artifact("a.glb", "model", "http://127.0.0.1/a.glb", 3, "model/gltf-binary", "0" * 64)
    outcome = CallOutcome(
        state="success",
        file_prefix="p",
        engine="preview",
        seed=7,
        artifacts=(artifact,),
        warnings=("w",),
        stage_seconds={"intake": 0.5, "generate": 1.0},
        gpu_seconds=0.25,
        meta={"seed": 7},
    )

    ending = ending_of(outcome)

    assert ending.state is JobState.SUCCESS
    assert [Artifact(**kept) for kept in ending.artifacts] == [artifact]
    assert (ending.warnings, ending.gpu_seconds, ending.engine, ending.meta) == (("w",), 0.25, "preview", {"seed": 7})
    assert ending.seconds == pytest.approx(1.5)


def test_cleaning_leaves_the_folders_of_calls_that_may_go_on(
    settings: Settings, store: SqlStore, key: ApiKey, temporary: LocalStorage
) -> None:
    open_job, ended = running(store, key), running(store, key)
    store.finish(ended.lease, Ending(JobState.FAILED))
    fresh = running(store, key)
    store.finish(fresh.lease, Ending(JobState.FAILED))
    old_s = STALE_FOLDER_S + 60
    folders = [make_folder(job, settings, age_s=old_s) for job in (open_job, ended)]
    folders.append(make_folder(fresh, settings, age_s=0))
    (settings.work_dir / "notes").mkdir()

    clean(store, temporary, settings.work_dir)

    assert [folder.exists() for folder in folders] == [True, False, True]
    assert (settings.work_dir / "notes").exists()


def test_cleaning_removes_records_and_outputs_whose_time_is_over(
    settings: Settings, store: SqlStore, key: ApiKey, temporary: LocalStorage, clock: Clock, tmp_path: Path
) -> None:
    job, later = running(store, key), running(store, key)
    source = tmp_path / "a.glb"
    source.write_bytes(b"glb")
    for one in (job, later):
        temporary.store([OutputFile(source, "model", "model/gltf-binary")], file_prefix=one.file_prefix)
    store.finish(job.lease, Ending(JobState.SUCCESS))
    clock.advance(1000)
    store.finish(later.lease, Ending(JobState.SUCCESS))

    clean(store, temporary, settings.work_dir)

    with pytest.raises(NotFound):
        store.get(job.id, key_id=None)
    assert not (settings.files_dir / job.file_prefix).exists()
    assert store.get(later.id, key_id=None).state is JobState.SUCCESS
    assert (settings.files_dir / later.file_prefix / "a.glb").read_bytes() == b"glb"


def test_a_full_disk_has_no_room_for_calls(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert has_room(folder)  # it is yet to be made
    try:
        with small_disk(folder):
            assert has_room(folder)
            with filled(folder):
                assert not has_room(folder)
            assert has_room(folder)
    except NotHere as reason:
        pytest.skip(str(reason))


def test_a_duty_that_fails_is_done_again() -> None:
    stop, times = threading.Event(), []

    def duty() -> None:
        times.append(len(times))
        if len(times) == 3:
            stop.set()
        raise OSError("disk full")

    repeat(duty, every_s=0.0, stop=stop)

    assert times == [0, 1, 2]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_worker_brings_a_call_from_the_queue_to_its_webhook(settings: Settings) -> None:
    stop = threading.Event()
    store = open_store(settings)
    owner = store.add_key(make_key("tests", limits=KeyLimits())[1])
    body = {"key": "k", "image": picture(), "resolution": 64, "texture_size": 512, "seed": 5}
    request = parse_request(body, default_output_format="glb").request
    with Receiver() as receiver:
        new = new_job(owner, request=request.model_dump_json().encode(), webhook_url=receiver.url)
        job_id = store.submit(new).job.id
        thread = threading.Thread(target=worker.run_worker, args=(settings,), kwargs={"worker_id": "w", "stop": stop})
        thread.start()
        wait_until(lambda: job_id in receiver.told)
        stop.set()
        thread.join(WAIT_S)

    job = store.get(job_id, key_id=None)
    assert job.state is JobState.SUCCESS and job.ending is not None
    assert job.ending.meta["seed"] == 5
    assert job.ending.artifacts[0]["name"] == f"{job.file_prefix}.glb"
    webhook_id, told = receiver.told[job_id][0]
    assert (told["status"], told["id"]) == ("success", job_id)
    assert [task.id for task in store.tasks_of(job_id)] == [webhook_id]
    assert not folder_of(job, settings.work_dir).exists()
    store.close()
