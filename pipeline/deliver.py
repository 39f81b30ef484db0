"""Stage 4: finished files to artifacts whose URLs answer. Knows no particular storage and nothing of jobs' states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DeliveryFailed, UnwritableOutput
from pipeline.storage.base import Artifact, CustomerBucket, OutputFile, Storage
from pipeline.storage.placing import place_files


@dataclass(frozen=True)
class Delivery:
    """Where the files of one call are now.

    Attributes:
        artifacts: in the order of the files.
        warnings: sentences for the caller.
        is_upload_pending: the files wait in temporary storage for a bucket that did not take them.
    """

    artifacts: tuple[Artifact, ...]
    warnings: tuple[str, ...] = ()
    is_upload_pending: bool = False


def deliver(
    files: Sequence[OutputFile], *, file_prefix: str, temporary: Storage, bucket: CustomerBucket | None
) -> Delivery:
    """Bring the files into the caller's bucket, or into temporary storage where there is none or it fails.

    Args:
        temporary: takes the files when the bucket does not.
        bucket: the caller's own; None without one, or when the caller asked for temporary storage.

    Raises:
        DeliveryFailed: temporary storage failed too.
    """
    if bucket is None:
        return Delivery(tuple(temporary.store(files, file_prefix=file_prefix)))
    try:
        artifacts = tuple(bucket.store(files, file_prefix=file_prefix))
        trouble = bucket.public_trouble(artifacts)
        return Delivery(artifacts, warnings=(trouble,) if trouble else ())
    except DeliveryFailed as error:
        warning = (
            f"Your bucket did not take the files ({error}); they are in temporary storage, "
            "and the upload is tried again until that copy expires."
        )
    artifacts = tuple(temporary.store(files, file_prefix=file_prefix))
    return Delivery(artifacts, warnings=(warning,), is_upload_pending=True)


def deliver_to_folder(files: Sequence[OutputFile], folder: Path) -> Delivery:
    """Copy the files into a folder of the caller's, under their own names, so that an OBJ's references resolve.

    Args:
        folder: made when missing; files of the same names are replaced, none is ever half-written.

    Raises:
        UnwritableOutput: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digests = place_files(files, folder, staging=folder)
    except OSError as error:
        raise UnwritableOutput(f"cannot write to {folder}: {error.strerror or type(error).__name__}") from error
    return Delivery(
        tuple(
            Artifact(
                name=file.path.name,
                kind=file.kind,
                url=(folder / file.path.name).absolute().as_uri(),
                size_bytes=size_bytes,
                content_type=file.content_type,
                sha256=sha256,
            )
            for file, (size_bytes, sha256) in zip(files, digests, strict=True)
        )
    )
