"""Stage 4: uploads to the bucket, or to temporary storage until the bucket is available again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.errors import DeliveryFailed, UnwritableOutput
from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import Job, JobResult, JobState, KeyLimits, NewJob, OutboxTask
from pipeline.stages.deliver import (
    Delivery,
    SlowBuckets,
    deliver,
    deliver_to_folder,
    retry_uploads,
    upload_dispatcher,
    upload_pause_s,
)
from pipeline.storage.base import Artifact, OutputFile, content_type_of
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from tests.reference.memory_store import MemoryStore

PREFIX = "7d3f0f0e"
HOUR_S = 3600.0


class Clock:
    """A clock that only `advance` moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class FakeBucket:
    """A `CustomerBucket` in memory that can be unavailable."""

    def __init__(self, *, public_url_warning: str | None = None) -> None:
        self.is_unavailable = False
        self.public_url_warning = public_url_warning
        self.objects: dict[str, bytes] = {}

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        if self.is_unavailable:
            raise DeliveryFailed("SlowDown on PutObject")
        for file in files:
            self.objects[file.path.name] = file.path.read_bytes()
        return [
            Artifact(file.path.name, file.kind, f"https://bucket.example/{file.path.name}", 1, file.content_type, "")
            for file in files
        ]

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        return self.public_url_warning


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def temporary(tmp_path: Path, clock: Clock) -> LocalStorage:
    return LocalStorage(tmp_path / "temporary", signer=LinkSigner([b"a master key, long enough"]), clock=clock)


@pytest.fixture
def files(tmp_path: Path) -> list[OutputFile]:
    contents = {"model": f"{PREFIX}.obj", "companion": f"{PREFIX}.mtl", "thumbnail": f"{PREFIX}.png"}
    for name in contents.values():
        (tmp_path / name).write_bytes(name.encode() * 100)
    return [
        OutputFile(tmp_path / name, kind=kind, content_type=content_type_of(name)) for kind, name in contents.items()
    ]


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    store = MemoryStore(clock=clock)
    store.add_key(key_record("a key in plain text", name="customer", limits=KeyLimits()))
    return store


WARNING = (
    "Your bucket did not accept the files (SlowDown on PutObject). They are in temporary storage, "
    "and the upload is retried until that copy expires."
)


# ---- the stage ----


def test_without_a_bucket_files_go_to_temporary_storage(temporary: LocalStorage, files: list[OutputFile]):
    delivery = deliver(files, file_prefix=PREFIX, temporary=temporary, bucket=None)

    assert [artifact.name for artifact in delivery.artifacts] == [file.path.name for file in files]
    assert all(artifact.url.startswith("/files/") for artifact in delivery.artifacts)
    assert (delivery.warnings, delivery.upload_warning) == ((), "")


def test_with_a_bucket_files_go_there_and_nowhere_else(
    temporary: LocalStorage, files: list[OutputFile], tmp_path: Path
):
    bucket = FakeBucket()

    delivery = deliver(files, file_prefix=PREFIX, temporary=temporary, bucket=bucket)

    assert [artifact.url for artifact in delivery.artifacts] == [
        f"https://bucket.example/{file.path.name}" for file in files
    ]
    assert set(bucket.objects) == {file.path.name for file in files}
    assert (delivery.warnings, delivery.upload_warning) == ((), "")
    assert not (tmp_path / "temporary").exists()


def test_a_public_address_that_does_not_answer_is_a_warning_only(temporary: LocalStorage, files: list[OutputFile]):
    delivery = deliver(
        files, file_prefix=PREFIX, temporary=temporary, bucket=FakeBucket(public_url_warning="It answers 403.")
    )

    assert delivery.warnings == ("It answers 403.",)
    assert not delivery.upload_warning


def test_an_unreachable_bucket_leaves_files_in_temporary_storage_with_a_warning(
    temporary: LocalStorage, files: list[OutputFile]
):
    bucket = FakeBucket()
    bucket.is_unavailable = True

    delivery = deliver(files, file_prefix=PREFIX, temporary=temporary, bucket=bucket)

    assert all(artifact.url.startswith("/files/") for artifact in delivery.artifacts)
    assert delivery.upload_warning == WARNING


def test_when_temporary_storage_fails_too_the_stage_fails(
    temporary: LocalStorage, files: list[OutputFile], tmp_path: Path
):
    bucket = FakeBucket()
    bucket.is_unavailable = True
    (tmp_path / "temporary").write_bytes(b"a file where the folder should be")

    with pytest.raises(DeliveryFailed, match="the temporary storage did not accept 3 files"):
        deliver(files, file_prefix=PREFIX, temporary=temporary, bucket=bucket)


# ---- into a folder ----


def test_files_keep_their_names_in_a_folder(files: list[OutputFile], tmp_path: Path):
    delivery = deliver_to_folder(files, tmp_path / "out" / "deeper")

    assert {path.name for path in (tmp_path / "out" / "deeper").iterdir()} == {file.path.name for file in files}
    for artifact, file in zip(delivery.artifacts, files, strict=True):
        assert artifact.url == (tmp_path / "out" / "deeper" / file.path.name).as_uri()
        assert Path(artifact.url.removeprefix("file://")).read_bytes() == file.path.read_bytes()


def test_a_name_with_spaces_and_umlauts_is_accepted_in_a_folder(tmp_path: Path):
    (tmp_path / "mein Stühl.glb").write_bytes(b"glTF")

    file = OutputFile(tmp_path / "mein Stühl.glb", kind="model", content_type="model/gltf-binary")
    deliver_to_folder([file], tmp_path / "out")

    assert (tmp_path / "out" / "mein Stühl.glb").read_bytes() == b"glTF"


def test_older_files_of_the_same_name_are_replaced_and_others_stay(files: list[OutputFile], tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{PREFIX}.obj").write_bytes(b"old")
    (tmp_path / "out" / "notes.txt").write_bytes(b"mine")

    deliver_to_folder(files, tmp_path / "out")

    assert (tmp_path / "out" / f"{PREFIX}.obj").read_bytes() == files[0].path.read_bytes()
    assert (tmp_path / "out" / "notes.txt").read_bytes() == b"mine"
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_folder_that_cannot_be_made_is_the_callers_error(files: list[OutputFile], tmp_path: Path):
    (tmp_path / "out").write_bytes(b"a file")

    with pytest.raises(UnwritableOutput, match=r"^cannot write to .*/out: File exists$"):
        deliver_to_folder(files, tmp_path / "out")


def test_a_name_taken_by_a_folder_is_the_callers_error(files: list[OutputFile], tmp_path: Path):
    (tmp_path / "out" / f"{PREFIX}.obj").mkdir(parents=True)

    with pytest.raises(UnwritableOutput, match=r"^cannot write to .*/out: Is a directory$"):
        deliver_to_folder(files, tmp_path / "out")


# ---- late uploads ----


def ended_job(store: MemoryStore, delivery: Delivery, *, api_key_id: str | None = None) -> Job:
    """A job that ended in success with a pending upload."""
    api_key_id = api_key_id or store.list_keys()[0].id
    store.submit(NewJob(api_key_id=api_key_id, file_prefix=PREFIX, request=b"{}", request_sha256="0"))
    job = store.claim("worker", lease_s=60)
    assert job is not None
    result = JobResult(
        JobState.SUCCESS,
        artifacts=delivery.artifacts,
        warnings=("Another warning.", *delivery.warnings),
        upload_warning=delivery.upload_warning,
    )
    return store.complete(job.lease, result)


@pytest.fixture
def waiting(
    store: MemoryStore, temporary: LocalStorage, files: list[OutputFile]
) -> tuple[Job, FakeBucket, Callable[[], int]]:
    """A job whose bucket is unavailable, that bucket, and one round of late uploads."""
    bucket = FakeBucket()
    bucket.is_unavailable = True
    delivery = deliver(files, file_prefix=PREFIX, temporary=temporary, bucket=bucket)
    job = ended_job(store, delivery)
    rng = random.Random(1)

    def retry() -> int:
        return retry_uploads(store, temporary=temporary, bucket_of=lambda api_key_id: bucket, rng=rng)

    return job, bucket, retry


def upload_of(store: MemoryStore, job: Job) -> OutboxTask:
    (task,) = store.tasks_of(job.id)
    return task


def test_a_late_upload_replaces_the_artifacts_and_removes_its_warning(
    waiting: tuple[Job, FakeBucket, Callable[[], int]], store: MemoryStore, files: list[OutputFile]
):
    job, bucket, retry = waiting
    bucket.is_unavailable = False

    assert retry() == 1

    result = store.get(job.id, api_key_id=None).result
    assert result is not None
    assert [artifact.url for artifact in result.artifacts] == [
        f"https://bucket.example/{file.path.name}" for file in files
    ]
    assert [artifact.kind for artifact in result.artifacts] == ["model", "companion", "thumbnail"]
    assert result.all_warnings == ("Another warning.",)
    assert bucket.objects[f"{PREFIX}.obj"] == files[0].path.read_bytes()
    assert upload_of(store, job).state == "done"
    assert retry() == 0


def test_no_upload_starts_after_the_time_limit_of_a_round(
    waiting: tuple[Job, FakeBucket, Callable[[], int]], store: MemoryStore, temporary: LocalStorage
):
    job, bucket, _ = waiting

    assert retry_uploads(store, temporary=temporary, bucket_of=lambda api_key_id: bucket, for_s=0.0) == 0
    assert upload_of(store, job).attempts == 0
    assert retry_uploads(store, temporary=temporary, bucket_of=lambda api_key_id: bucket, for_s=60.0) == 1


def test_an_unavailable_bucket_is_retried_with_growing_pauses_until_it_accepts_the_files(
    waiting: tuple[Job, FakeBucket, Callable[[], int]], store: MemoryStore, clock: Clock
):
    job, bucket, retry = waiting

    pauses = []
    for _ in range(6):
        assert retry() == 1
        assert retry() == 0
        pauses.append(upload_of(store, job).next_attempt_at - clock.now)
        clock.now = upload_of(store, job).next_attempt_at
    assert pauses == sorted(pauses)
    assert 4.25 <= pauses[0] <= 5
    assert [attempt.error for attempt in store.attempts_of(upload_of(store, job).id)] == ["SlowDown on PutObject"] * 6
    assert store.get(job.id, api_key_id=None).result == job.result

    bucket.is_unavailable = False
    assert retry() == 1
    assert upload_of(store, job).state == "done"


def test_an_upload_is_given_up_when_the_temporary_copy_expires(
    waiting: tuple[Job, FakeBucket, Callable[[], int]], store: MemoryStore, clock: Clock
):
    job, _, retry = waiting
    began_at = clock.now

    while upload_of(store, job).state == "pending":
        clock.now = upload_of(store, job).next_attempt_at
        assert retry() == 1

    assert upload_of(store, job).state == "given_up"
    assert 22 * HOUR_S < clock.now - began_at <= 24 * HOUR_S


def test_an_upload_whose_temporary_copy_is_gone_is_given_up(
    waiting: tuple[Job, FakeBucket, Callable[[], int]], store: MemoryStore, temporary: LocalStorage
):
    job, bucket, retry = waiting
    bucket.is_unavailable = False
    temporary.delete(PREFIX)

    assert retry() == 1

    assert upload_of(store, job).state == "given_up"
    assert upload_of(store, job).last_error == "the temporary copy is gone"


def test_an_upload_for_a_key_that_has_no_bucket_any_more_is_given_up(
    waiting: tuple[Job, FakeBucket, Callable[[], int]], store: MemoryStore, temporary: LocalStorage
):
    job, _, _ = waiting

    assert retry_uploads(store, temporary=temporary, bucket_of=lambda api_key_id: None) == 1

    assert upload_of(store, job).state == "given_up"
    assert upload_of(store, job).last_error == "the bucket was removed"


def test_a_job_that_was_deleted_has_nothing_to_upload(
    waiting: tuple[Job, FakeBucket, Callable[[], int]], store: MemoryStore
):
    job, _, retry = waiting
    store.delete(job.id, api_key_id=None)

    assert retry() == 0


def test_a_job_that_is_deleted_during_the_upload_is_ignored(
    store: MemoryStore, temporary: LocalStorage, files: list[OutputFile]
):
    job = ended_job(store, Delivery(tuple(temporary.store(files, file_prefix=PREFIX)), upload_warning=WARNING))

    class DeletingBucket(FakeBucket):
        def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
            store.delete(job.id, api_key_id=None)
            return super().store(files, file_prefix=file_prefix)

    assert retry_uploads(store, temporary=temporary, bucket_of=lambda api_key_id: DeletingBucket()) == 1


class HangingBucket(FakeBucket):
    """Accepts nothing until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        self.has_begun.set()
        assert self.may_end.wait(30)
        raise DeliveryFailed("the bucket's endpoint takes too long")


def test_the_uploads_of_a_well_bucket_do_not_wait_behind_one_that_hangs(
    store: MemoryStore, temporary: LocalStorage, files: list[OutputFile]
):
    other = key_record("another key in plain text", name="other", limits=KeyLimits())
    store.add_key(other)
    customer = store.list_keys()[0]
    delivery = Delivery(tuple(temporary.store(files, file_prefix=PREFIX)), upload_warning=WARNING)
    of_customer = [ended_job(store, delivery) for _ in range(3)]
    of_other = [ended_job(store, delivery, api_key_id=other.id) for _ in range(3)]
    hanging, well = HangingBucket(), FakeBucket()
    buckets = {customer.id: hanging, other.id: well}
    stop = threading.Event()
    uploads = upload_dispatcher(store, temporary=temporary, bucket_of=buckets.get)
    thread = threading.Thread(target=uploads.run, args=(stop,), kwargs={"poll_s": 0.01})
    thread.start()
    try:
        assert hanging.has_begun.wait(30)
        while not all(upload_of(store, job).state == "done" for job in of_other):
            stop.wait(0.01)  # ends by the test's own timeout if they never are
        assert all(upload_of(store, job).state == "pending" for job in of_customer)
    finally:
        stop.set()
        hanging.may_end.set()
        thread.join(30)


def test_a_bucket_that_was_slow_to_fail_is_skipped_for_a_while(
    clock: Clock, temporary: LocalStorage, files: list[OutputFile]
):
    class SlowBucket(FakeBucket):
        asked = 0

        def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
            self.asked += 1
            clock.now += 15
            raise DeliveryFailed("the bucket's endpoint takes too long")

    slow, saved, refusing = SlowBuckets(for_s=300, clock=clock), SlowBucket(), FakeBucket()
    refusing.is_unavailable = True

    def deliver_to(bucket: FakeBucket, bucket_id: bytes) -> Delivery:
        watched = slow.watched(bucket, bucket_id=bucket_id)
        return deliver(files, file_prefix=PREFIX, temporary=temporary, bucket=watched)

    assert "takes too long" in deliver_to(saved, b"one").upload_warning
    assert "it took too long a moment ago" in deliver_to(saved, b"one").upload_warning
    assert saved.asked == 1  # skipped
    assert not deliver_to(FakeBucket(), b"another").upload_warning
    deliver_to(saved, b"one, saved again")
    assert saved.asked == 2
    clock.now += 301
    deliver_to(saved, b"one")
    assert saved.asked == 3
    for _ in range(2):  # refused quickly: nobody waits for it
        assert "SlowDown" in deliver_to(refusing, b"refusing").upload_warning


def test_upload_pauses_double_from_five_seconds_to_an_hour():
    rng = random.Random(7)

    for attempts_made in range(1, 3000):
        longest = min(5 * 2 ** (attempts_made - 1), 3600)
        assert 0.85 * longest <= upload_pause_s(attempts_made, rng) <= longest
