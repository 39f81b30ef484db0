"""Temporary outputs on a shared volume, for a web process that does not mount it. Knows nothing of Modal.

A mounted volume shows its state at the time of mounting and cannot be reloaded while a file on it is open. So a file
that a link names is copied to this machine, from which ranges of it are served. Files with a lifetime of their own end
when the cleaner has deleted them from the volume, since the volume tells nothing but their content.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pipeline.errors import DeliveryFailed, NotFound, StoreUnavailable
from pipeline.storage.base import Artifact, OutputFile, StoredFile, content_type_of
from pipeline.storage.generations import FOLDER, generation_name
from pipeline.storage.links import SAFE_NAME
from pipeline.storage.local import LocalStorage

COPY_LIFETIME_S = 300.0
"""How long a copy is served without asking the volume; a file that was deleted elsewhere may be served so long."""
COPIES_KEPT_S = 3 * COPY_LIFETIME_S
"""Longer than a copy is served, so that none is deleted during a download."""


class Batch(Protocol):
    """Files to write to a volume."""

    def put_file(self, local_file: Path, remote_path: str) -> None:
        """Add a file."""
        ...


class Volume(Protocol):
    """A shared volume, by the paths of its files."""

    def read_file(self, path: str) -> Iterable[bytes]:
        """A file's current content, in chunks.

        Raises:
            FileNotFoundError: it does not exist; possibly raised only when the first chunk is read.
        """
        ...

    def batch_upload(self, force: bool = False) -> AbstractContextManager[Batch]:
        """Files that are written together when the context ends; with `force` they replace existing ones."""
        ...

    def remove_file(self, path: str, recursive: bool = False) -> None:
        """Delete a file or, with `recursive`, a folder.

        Raises:
            FileNotFoundError: it does not exist.
        """
        ...


class VolumeStorage:
    """A volume's folder, as a `pipeline.storage.base.LinkedFiles`.

    Args:
        volume: where other containers store the files, as `<folder>/<file_prefix>/<name>`.
        folder: the path on the volume.
        copies: a storage in a folder of this machine, with the links' signer; holds only copies.
        missing: what the volume's client raises for a file that does not exist.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        volume: Volume,
        folder: str = "",
        *,
        copies: LocalStorage,
        missing: tuple[type[Exception], ...] = (FileNotFoundError,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._folder = folder
        self._copies = copies
        self._missing = missing
        self._clock = clock
        self._copied: dict[tuple[str, str], tuple[float, str]] = {}  # time of the copy, SHA-256
        self._locks: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)

    def predict_urls(
        self, names: Iterable[str], *, file_prefix: str, created_at: float, lifetime_s: float | None = None
    ) -> list[str]:
        """As `LinkedFiles.predict_urls`."""
        return self._copies.predict_urls(names, file_prefix=file_prefix, created_at=created_at, lifetime_s=lifetime_s)

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """As `Storage.store`.

        Raises:
            DeliveryFailed: the volume did not accept the files.
        """
        copies = self._copies.store(files, file_prefix=file_prefix)  # signs their links; serves the first downloads
        try:
            with self._volume.batch_upload(force=True) as batch:
                for file in files:
                    batch.put_file(file.path, f"{self._folder}/{file_prefix}/{file.path.name}")
        except Exception as error:  # any error of Modal's client
            self._copies.delete(file_prefix)
            raise DeliveryFailed("temporary storage does not accept files at the moment") from error
        for copy in copies:
            self._copied[file_prefix, copy.name] = (self._clock(), copy.sha256)
        return copies

    def open_file(self, token: str, name: str) -> StoredFile:
        """As `LinkedFiles.open_file`; the ETag is the content's digest, so it is the same in all web processes.

        Raises:
            StoreUnavailable: the volume cannot be read, or this machine has no space for a copy.
        """
        file_prefix = self._copies.prefix_of(token)
        if not SAFE_NAME.fullmatch(name):
            raise NotFound("there is no such file")
        self._delete_old_copies()
        with self._locks[file_prefix, name]:
            sha256 = self._copy(file_prefix, name)
        return replace(self._copies.open_file(token, name), etag=f'"{sha256}"')

    def delete(self, file_prefix: str) -> bool:
        """As `LinkedFiles.delete`; other web processes may serve their copies for another `COPY_LIFETIME_S`.

        Raises:
            StoreUnavailable: the volume cannot be written.
        """
        if not SAFE_NAME.fullmatch(file_prefix):
            return False
        existed = True
        try:
            self._volume.remove_file(f"{self._folder}/{file_prefix}", recursive=True)
        except self._missing:
            existed = False
        except Exception as error:  # any error of Modal's client
            raise StoreUnavailable("temporary outputs cannot be deleted at the moment") from error
        self._forget(file_prefix)  # after the volume, or a concurrent download would copy the files again
        return existed

    def _copy(self, file_prefix: str, name: str) -> str:
        """Make sure that a recent copy exists; returns its SHA-256.

        Raises:
            NotFound: there is no such file on the volume.
            StoreUnavailable: the volume cannot be read, or this machine has no space for a copy.
        """
        known = self._copied.get((file_prefix, name))
        if known is not None and self._clock() - known[0] < COPY_LIFETIME_S:
            return known[1]
        with tempfile.TemporaryDirectory(prefix="image-to-3d-") as staging:
            path = Path(staging) / name
            try:
                with path.open("wb") as file:
                    file.writelines(self._volume.read_file(f"{self._folder}/{file_prefix}/{name}"))
            except self._missing as error:
                self._locks.pop(
                    (file_prefix, name), None
                )  # a link opens every name: locks of names without a file would accumulate
                raise NotFound("there is no such file") from error
            except Exception as error:  # any error of Modal's client
                raise StoreUnavailable("temporary outputs cannot be read at the moment") from error
            copy = OutputFile(path, kind="extra", content_type=content_type_of(name))
            try:
                sha256 = self._copies.store([copy], file_prefix=file_prefix)[0].sha256
            except DeliveryFailed as error:
                raise StoreUnavailable("temporary outputs cannot be copied at the moment") from error
        self._copied[file_prefix, name] = (self._clock(), sha256)
        return sha256

    def _delete_old_copies(self) -> None:
        """Free space: delete the copies of jobs whose files were not requested lately."""
        newest: dict[str, float] = {}
        for (file_prefix, _), (copied_at, _) in list(self._copied.items()):
            newest[file_prefix] = max(copied_at, newest.get(file_prefix, copied_at))
        for file_prefix, copied_at in newest.items():
            if self._clock() - copied_at > COPIES_KEPT_S:
                self._forget(file_prefix)

    def _forget(self, file_prefix: str) -> None:
        for key in [key for key in list(self._copied) if key[0] == file_prefix]:
            self._copied.pop(key, None)
            self._locks.pop(key, None)
        self._copies.delete(file_prefix)


class VolumeGenerations:
    """Kept generations on a volume, as a `pipeline.storage.generations.GenerationIndex`.

    Args:
        volume: where the containers of jobs keep them.
        missing: as for `VolumeStorage`.
    """

    def __init__(self, volume: Volume, *, missing: tuple[type[Exception], ...] = (FileNotFoundError,)) -> None:
        self._volume = volume
        self._missing = missing

    def has(self, file_prefix: str) -> bool:
        """As `GenerationIndex.has`: whether the cleaner has left the file; its first chunk alone is read.

        Raises:
            StoreUnavailable: the volume cannot be read.
        """
        try:
            return any(True for _ in self._volume.read_file(_generation_path(file_prefix)))
        except self._missing:
            return False
        except Exception as error:  # any error of Modal's client
            raise StoreUnavailable("kept generations cannot be read at the moment") from error

    def delete(self, file_prefix: str) -> None:
        """As `GenerationIndex.delete`.

        Raises:
            StoreUnavailable: the volume cannot be written.
        """
        try:
            self._volume.remove_file(_generation_path(file_prefix))
        except self._missing:
            return
        except Exception as error:  # any error of Modal's client
            raise StoreUnavailable("kept generations cannot be deleted at the moment") from error


def backup_reader(volume: Volume, *, missing: tuple[type[Exception], ...]) -> Callable[[str], bytes | None]:
    """Reads the files of a backup on a volume that is not mounted here; None where there is no such file.

    Args:
        missing: as for `VolumeStorage`.
    """

    def read(path: str) -> bytes | None:
        try:
            return b"".join(volume.read_file(path))
        except missing:
            return None

    return read


def _generation_path(file_prefix: str) -> str:
    return f"{FOLDER}/{generation_name(file_prefix)}"
