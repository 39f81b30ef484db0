"""Temporary outputs in a local folder, behind signed links that expire. Knows nothing of the store and of HTTP.

The layout is `<folder>/<file_prefix>/<name>`; entries that start with a dot are being written or deleted. Where a
job's files have a lifetime of their own, its folder holds the time of their end in `.expires`, which no link opens.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DeliveryFailed, NotFound
from pipeline.private_files import private_opener
from pipeline.storage.atomic_copy import copy_atomically, staging_age_s, staging_name
from pipeline.storage.base import Artifact, FileKind, OutputFile, Storage, StoredFile, content_type_of
from pipeline.storage.links import SAFE_NAME, LinkSigner

RUN_ALLOWANCE_S = 3600.0
"""How long after its submit a job may finish and still get exactly the links that were predicted."""
EXPIRY_FILE = ".expires"
STORED_FILE = ".stored"
"""Holds when a job's files were stored; a shared volume may not keep the time of a folder."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LocalStorage:
    """A folder, as a `pipeline.storage.base.Storage`.

    Args:
        folder: created when first needed.
        signer: creates and checks the links.
        base_url: the start of links, as `https://host`; empty gives links that start with `/files/`.
        lifetime_s: how long files can be downloaded.
        commit: called after every change, for folders whose changes must be committed to be seen by other machines.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *,
        signer: LinkSigner,
        base_url: str = "",
        lifetime_s: float = 24 * 3600.0,
        commit: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._signer = signer
        self._base_url = base_url.rstrip("/")
        self._lifetime_s = lifetime_s
        self._commit = commit
        self._clock = clock

    def predict_urls(
        self, names: Iterable[str], *, file_prefix: str, created_at: float, lifetime_s: float | None = None
    ) -> list[str]:
        """The links of files that may not exist yet; the arguments are those of `LinkedFiles.predict_urls`."""
        lifetime_s = self._lifetime_s if lifetime_s is None else lifetime_s
        token = self._signer.token(file_prefix, expires_at=created_at + RUN_ALLOWANCE_S + lifetime_s)
        return [self._url(token, name) for name in names]

    def store(
        self,
        files: Sequence[OutputFile],
        *,
        file_prefix: str,
        created_at: float | None = None,
        lifetime_s: float | None = None,
    ) -> list[Artifact]:
        """Copy the files into the folder and flush them to the disk.

        Storing the same files again changes nothing. A failure leaves no partial files.

        Args:
            created_at: when the job was submitted; links are then those of `predict_urls`, unless that was
                more than `RUN_ALLOWANCE_S` ago.
            lifetime_s: how long these files are kept from now on; None is the lifetime of the storage, which begins
                up to `RUN_ALLOWANCE_S` later.

        Raises:
            DeliveryFailed: the disk is full or cannot be written, a source does not exist, or a name is not safe.
        """
        names = [file.path.name for file in files]
        if len(set(names)) < len(names):
            raise DeliveryFailed("two files to deliver have the same name")
        for name in [file_prefix, *names]:
            if not SAFE_NAME.fullmatch(name):
                raise DeliveryFailed(f"{name!r} is not a safe file name for a link")

        try:
            digests = copy_atomically(files, self._folder / file_prefix, staging=self._folder, is_private=True)
            now = self._clock()
            if lifetime_s is not None:
                self._write_time(file_prefix, EXPIRY_FILE, now + lifetime_s)
            self._write_time(file_prefix, STORED_FILE, now)
        except OSError as error:
            raise _as_delivery_failed(error, files) from error
        self._commit()

        is_predicted = created_at is not None and created_at <= now <= created_at + RUN_ALLOWANCE_S
        starts_at = created_at + RUN_ALLOWANCE_S if is_predicted and created_at is not None else now
        link_ends_at = starts_at + (self._lifetime_s if lifetime_s is None else lifetime_s)
        token = self._signer.token(file_prefix, expires_at=link_ends_at)
        expires_at = link_ends_at if lifetime_s is None else now + lifetime_s
        return [
            Artifact.of(
                file,
                url=self._url(token, file.path.name),
                size_bytes=size_bytes,
                sha256=sha256,
                expires_at=float(int(expires_at)),  # as the token holds it
            )
            for file, (size_bytes, sha256) in zip(files, digests, strict=True)
        ]

    def for_job(self, *, created_at: float, lifetime_s: float | None = None) -> Storage:
        """This storage for one job, with the links that were predicted at its submit.

        Args:
            lifetime_s: as for `store`.
        """
        return _JobStorage(self, created_at, lifetime_s)

    def open_file(self, token: str, name: str) -> StoredFile:
        """The file behind a link.

        Raises:
            NotFound: the token is not signed here, was altered or has expired, or the file does not exist.
        """
        file_prefix = self.prefix_of(token)
        expires_at = self.expiry_of(file_prefix)
        if expires_at is not None and self._clock() >= expires_at:
            raise NotFound("this link has expired")
        path = self._stored_path(file_prefix, name)
        try:
            stat = path.stat(follow_symlinks=False)
        except OSError as error:
            raise NotFound("there is no such file") from error
        return StoredFile(
            path=path,
            size_bytes=stat.st_size,
            etag=f'"{stat.st_mtime_ns:x}-{stat.st_ino:x}-{stat.st_size:x}"',
            content_type=content_type_of(name),
            modified_at=stat.st_mtime,
        )

    def prefix_of(self, token: str) -> str:
        """The file prefix of the files that a token opens.

        Raises:
            NotFound: the token is not signed here, was altered or has expired.
        """
        return self._signer.check(token, now=self._clock())

    def expiry_of(self, file_prefix: str) -> float | None:
        """When a job's files end, where they have a lifetime of their own; seconds since 1970."""
        return self._read_time(file_prefix, EXPIRY_FILE)

    def _read_time(self, file_prefix: str, name: str) -> float | None:
        try:
            return float((self._folder / file_prefix / name).read_bytes())
        except (OSError, ValueError):
            return None

    def _write_time(self, file_prefix: str, name: str, at: float) -> None:
        """Replace a job's expiry or its other time, atomically: a reader finds the old one or the new one."""
        unfinished = self._folder / file_prefix / f"{name}-{secrets.token_hex(8)}"
        try:
            with open(unfinished, "w", opener=private_opener) as file:  # for the opener
                file.write(f"{at:.0f}")
            unfinished.replace(self._folder / file_prefix / name)
        finally:
            unfinished.unlink(missing_ok=True)

    def stored_files(self, contents: Iterable[tuple[str, FileKind]], *, file_prefix: str) -> list[OutputFile]:
        """Stored files as files to deliver, for a late upload.

        Args:
            contents: name and kind of each.

        Raises:
            NotFound: one of them does not exist any more.
        """
        return [
            OutputFile(self._stored_path(file_prefix, name), kind=kind, content_type=content_type_of(name))
            for name, kind in contents
        ]

    def delete(self, file_prefix: str) -> bool:
        """Delete the files of one job; returns whether there were any."""
        if not SAFE_NAME.fullmatch(file_prefix):
            return False
        if not self._remove(self._folder / file_prefix):
            return False
        self._commit()
        return True

    def clean(self) -> int:
        """Delete expired files and what interrupted writers left; returns for how many jobs files were deleted."""
        if not self._folder.is_dir():
            return 0
        removed = 0
        for entry in list(self._folder.iterdir()):
            with suppress(FileNotFoundError):  # another process has deleted it
                if not entry.name.startswith("."):
                    removed += self._has_expired(entry.name) and self._remove(entry)
                elif staging_age_s(entry, now=self._clock()) > RUN_ALLOWANCE_S:
                    shutil.rmtree(entry, ignore_errors=True)
        self._commit()
        return removed

    def _has_expired(self, file_prefix: str) -> bool:
        """Whether no link to a job's files is valid any more."""
        now, expires_at = self._clock(), self.expiry_of(file_prefix)
        if expires_at is not None:
            return now >= expires_at
        stored_at = self._read_time(file_prefix, STORED_FILE)
        if stored_at is None:  # of version 0.1.0, or of a writer that was killed: its time begins now
            self._write_time(file_prefix, STORED_FILE, now)
            return False
        return now - stored_at > self._lifetime_s + RUN_ALLOWANCE_S

    def _url(self, token: str, name: str) -> str:
        return f"{self._base_url}/files/{token}/{name}"

    def _stored_path(self, file_prefix: str, name: str) -> Path:
        """The path of an existing regular file."""
        path = self._folder / file_prefix / name
        if not (SAFE_NAME.fullmatch(file_prefix) and SAFE_NAME.fullmatch(name)) or path.is_symlink():
            raise NotFound("there is no such file")
        if not path.is_file():
            raise NotFound("there is no such file")
        return path

    def _remove(self, folder: Path) -> bool:
        """Rename a folder, which is atomic, then delete it."""
        leaving = self._folder / staging_name("leaving")
        try:
            folder.rename(leaving)
        except FileNotFoundError:
            return False
        shutil.rmtree(leaving, ignore_errors=True)
        return True


@dataclass(frozen=True)
class _JobStorage:
    """A `LocalStorage` that knows when the job was submitted, and how long its files are kept."""

    local: LocalStorage
    created_at: float
    lifetime_s: float | None

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        return self.local.store(files, file_prefix=file_prefix, created_at=self.created_at, lifetime_s=self.lifetime_s)


def _as_delivery_failed(error: OSError, files: Sequence[OutputFile]) -> DeliveryFailed:
    total_mb = sum(file.path.stat().st_size for file in files if file.path.is_file()) / 1e6
    total = f"{len(files)} files of {total_mb:.1f} MB" if len(files) != 1 else f"a file of {total_mb:.1f} MB"
    if error.errno in _NO_SPACE:
        return DeliveryFailed(f"the temporary storage has no space left for {total}")
    return DeliveryFailed(f"the temporary storage did not accept {total}: {error.strerror or type(error).__name__}")
