"""Stage 4: uploads finished files and returns artifacts whose URLs answer; retries uploads to a bucket that was down.

Knows nothing of how a storage works, nor of who runs the stage.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from pipeline.errors import DeliveryFailed, NotFound, UnwritableOutput
from pipeline.jobs.model import AttemptResult, OutboxTask
from pipeline.jobs.outbox_dispatcher import OutboxDispatcher
from pipeline.jobs.store import JobStore, Outbox
from pipeline.storage.atomic_copy import copy_atomically
from pipeline.storage.base import Artifact, CustomerBucket, FileKind, OutputFile, Storage
from pipeline.storage.local import LocalStorage

UPLOAD_CLAIM_S = 900.0
"""How long one process holds the claim on an upload; after a crash another process can claim it then."""
UPLOAD_THREADS = 8
SLOW_S = 5.0
"""A bucket that takes longer than this to fail is skipped for a while."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 3600.0

log = structlog.get_logger()


class SlowBuckets:
    """The buckets that were slow to fail lately: files for these go to temporary storage at once.

    A job's worker makes no other model while it waits for a bucket. So a bucket that hangs is waited for once, and
    then gets its files by late uploads, which wait beside the jobs.

    Args:
        for_s: how long a bucket is skipped.
        clock: monotonic seconds.
    """

    def __init__(self, *, for_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._for_s = for_s
        self._clock = clock
        self._until_s: dict[bytes, float] = {}

    def watched(self, bucket: CustomerBucket, *, bucket_id: bytes) -> CustomerBucket:
        """The bucket, which refuses files while it is skipped.

        Args:
            bucket_id: other bytes whenever the bucket's details change.
        """
        return _WatchedBucket(self, bucket, bucket_id)

    def store(
        self, bucket: CustomerBucket, bucket_id: bytes, files: Sequence[OutputFile], *, file_prefix: str
    ) -> list[Artifact]:
        """As `CustomerBucket.store`.

        Raises:
            DeliveryFailed: the bucket did not accept the files, or is skipped.
        """
        started_s = self._clock()
        self._until_s = {known: until_s for known, until_s in self._until_s.items() if until_s > started_s}
        if bucket_id in self._until_s:
            raise DeliveryFailed("it took too long a moment ago")
        try:
            return bucket.store(files, file_prefix=file_prefix)
        except DeliveryFailed:
            if self._clock() - started_s > SLOW_S:
                self._until_s[bucket_id] = self._clock() + self._for_s
            raise


@dataclass(frozen=True)
class _WatchedBucket:
    """A bucket whose failures `SlowBuckets` learns of."""

    slow: SlowBuckets
    bucket: CustomerBucket
    bucket_id: bytes

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        return self.slow.store(self.bucket, self.bucket_id, files, file_prefix=file_prefix)

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        return self.bucket.check_public_url(artifacts)


@dataclass(frozen=True)
class Delivery:
    """Where the files of one job are.

    Attributes:
        artifacts: in the order of the files.
        warnings: sentences for the caller.
        upload_warning: why the files are in temporary storage instead of the caller's bucket; "" unless an upload is
            pending.
    """

    artifacts: tuple[Artifact, ...]
    warnings: tuple[str, ...] = ()
    upload_warning: str = ""


def deliver(
    files: Sequence[OutputFile], *, file_prefix: str, temporary: Storage, bucket: CustomerBucket | None
) -> Delivery:
    """Upload the files to the caller's bucket, or to temporary storage where there is no bucket or it fails.

    Args:
        temporary: stores the files when the bucket does not accept them.
        bucket: the caller's own; None without one, or when the caller asked for temporary storage.

    Raises:
        DeliveryFailed: temporary storage failed too.
    """
    if bucket is None:
        return Delivery(tuple(temporary.store(files, file_prefix=file_prefix)))
    try:
        artifacts = tuple(bucket.store(files, file_prefix=file_prefix))
        problem = bucket.check_public_url(artifacts)
        return Delivery(artifacts, warnings=(problem,) if problem else ())
    except DeliveryFailed as error:
        warning = (
            f"Your bucket did not accept the files ({error}). They are in temporary storage, and the upload is retried "
            "until that copy expires."
        )
    artifacts = tuple(temporary.store(files, file_prefix=file_prefix))
    return Delivery(artifacts, upload_warning=warning)


def deliver_to_folder(files: Sequence[OutputFile], folder: Path) -> Delivery:
    """Copy the files into the caller's folder under their own names, so that an OBJ's references resolve.

    Args:
        folder: created when missing; files of the same names are replaced atomically.

    Raises:
        UnwritableOutput: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digests = copy_atomically(files, folder, staging=folder)
    except OSError as error:
        raise UnwritableOutput(f"cannot write to {folder}: {error.strerror or type(error).__name__}") from error
    return Delivery(
        tuple(
            Artifact.of(file, url=(folder / file.path.name).absolute().as_uri(), size_bytes=size_bytes, sha256=sha256)
            for file, (size_bytes, sha256) in zip(files, digests, strict=True)
        )
    )


class UploadStore(JobStore, Outbox, Protocol):
    """The part of a store that late uploads use."""


def retry_uploads(
    store: UploadStore,
    *,
    temporary: LocalStorage,
    bucket_of: Callable[[str], CustomerBucket | None],
    for_s: float = float("inf"),
    rng: random.Random | None = None,
) -> int:
    """Try the uploads that are due and wait for their ends, see `upload_dispatcher`.

    Args:
        for_s: no upload starts after so many seconds.

    Returns:
        How many uploads were tried.
    """
    return upload_dispatcher(store, temporary=temporary, bucket_of=bucket_of, rng=rng).send_due(for_s=for_s)


def upload_dispatcher(
    store: UploadStore,
    *,
    temporary: LocalStorage,
    bucket_of: Callable[[str], CustomerBucket | None],
    rng: random.Random | None = None,
) -> OutboxDispatcher:
    """Makes the late uploads: from temporary storage to the bucket that did not accept the files.

    After a success the job's artifacts are those in the bucket, and the warning about it is gone. One upload per key
    runs at a time; the store ends them when the temporary copy expires.

    Args:
        bucket_of: the present bucket of a key; None when it has been removed.
        rng: for the jitter of the pauses.
    """
    rng = rng or random.Random()

    def attempt(task: OutboxTask) -> AttemptResult:
        started_s = time.monotonic()
        pause_s: float | None = None
        try:
            error = _upload(store, task, temporary=temporary, bucket=bucket_of(task.api_key_id))
        except DeliveryFailed as failure:
            error, pause_s = str(failure), upload_pause_s(task.attempts + 1, rng)
        except NotFound:
            error = "the temporary copy is gone"
        seconds = time.monotonic() - started_s
        log.info("late upload", job_id=task.job_id, number=task.attempts + 1, error=error, seconds=round(seconds, 3))
        return AttemptResult(status=None, error=error, seconds=seconds, retry_in_s=pause_s)

    return OutboxDispatcher(store, "upload", attempt=attempt, threads=UPLOAD_THREADS, per_key=1, claim_s=UPLOAD_CLAIM_S)


def upload_pause_s(attempts_made: int, rng: random.Random) -> float:
    """Seconds before an upload is tried again: doubling from 5 s to an hour, shortened at random by up to 15 %."""
    return min(FIRST_PAUSE_S * 2.0 ** min(attempts_made - 1, 16), LONGEST_PAUSE_S) * (1 - 0.15 * rng.random())


def _upload(store: UploadStore, task: OutboxTask, *, temporary: LocalStorage, bucket: CustomerBucket | None) -> str:
    """Make one late upload; returns "" or why it must not be retried."""
    job = store.get(task.job_id, api_key_id=None)
    if bucket is None:
        return "the bucket was removed"
    if job.result is None:
        return "the job has no outputs"
    contents: list[tuple[str, FileKind]] = [(artifact.name, artifact.kind) for artifact in job.result.artifacts]
    stored = temporary.stored_files(contents, file_prefix=job.file_prefix)
    files = [replace(file, faces=artifact.faces) for file, artifact in zip(stored, job.result.artifacts, strict=True)]
    artifacts = tuple(bucket.store(files, file_prefix=job.file_prefix))
    problem = bucket.check_public_url(artifacts)
    # Records of version 0.1.0 have no `upload_warning`: they keep it as the last of `warnings`.
    warnings = job.result.warnings if job.result.upload_warning else job.result.warnings[:-1]
    result = replace(
        job.result,
        artifacts=artifacts,
        warnings=(*warnings, problem) if problem else warnings,
        upload_warning="",
    )
    store.replace_result(job.id, result)
    return ""
