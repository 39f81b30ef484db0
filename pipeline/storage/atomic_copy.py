"""Copies a set of files into a folder so that no reader ever sees a partly written file. Knows nothing of links."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.private_files import make_private_folder, private_opener
from pipeline.storage.base import OutputFile

COPY_CHUNK_BYTES = 1 << 20
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def copy_atomically(
    files: Sequence[OutputFile], folder: Path, *, staging: Path, is_private: bool = False
) -> list[tuple[int, str]]:
    """Copy the files to a staging folder, flush them to the disk, then move them into the folder.

    The model is moved last, so that a reader who sees it also finds its companions. An existing file with the same
    content is not replaced. If this fails, the folder is unchanged except for files already moved.

    Args:
        files: with different names.
        folder: created if it does not exist.
        staging: a folder on the same file system; the temporary folder in it starts with `.arriving-`.
        is_private: new folders and files are for this user only, whatever the umask is.

    Returns:
        Size in bytes and hex digest of the SHA-256 of each.

    Raises:
        OSError: a source cannot be read, or the disk refuses.
    """
    make_folder = make_private_folder if is_private else partial(Path.mkdir, parents=True, exist_ok=True)
    make_folder(staging)
    arriving = staging / staging_name("arriving")
    make_folder(arriving)
    try:
        digests = [copy_durably(file.path, arriving / file.path.name, is_private=is_private) for file in files]
        make_folder(folder)
        for file, digest in sorted(zip(files, digests, strict=True), key=lambda pair: pair[0].kind == "model"):
            target = folder / file.path.name
            if not _has_content(target, digest):
                (arriving / target.name).replace(target)
        _sync_folder(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return digests


def staging_name(purpose: str) -> str:
    """A unique name for a temporary folder, with the time in it: a shared volume may not keep that of a folder."""
    return f".{purpose}-{time.time():.0f}-{secrets.token_hex(8)}"


def staging_age_s(folder: Path, *, now: float) -> float:
    """Seconds since a temporary folder was named.

    Raises:
        FileNotFoundError: it has a name of version 0.1.0, without the time, and is gone.
    """
    _, _, rest = folder.name.partition("-")
    at, has_time, _ = rest.partition("-")
    return now - (float(at) if has_time and at.isdigit() else folder.stat(follow_symlinks=False).st_mtime)


def copy_durably(source: Path, target: Path, *, is_private: bool = False) -> tuple[int, str]:
    """Copy a file and flush it to the disk; returns its size in bytes and the hex digest of its SHA-256.

    Args:
        is_private: a new file is for this user only, whatever the umask is.

    Raises:
        OSError: a file cannot be read or written.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    opener = private_opener if is_private else None
    with source.open("rb") as reader, open(target, "wb", opener=opener) as writer:  # for the opener
        while chunk := reader.read(COPY_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return size_bytes, digest.hexdigest()


def _has_content(path: Path, digest: tuple[int, str]) -> bool:
    """Whether a file exists with this size and SHA-256."""
    size_bytes, sha256 = digest
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest() == sha256


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where its file system can: network file systems refuse it for folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(handle)
