"""Kept generations in the deployment's own bucket, so that any machine can export a job again.

They are pickles like checkpoints, and travel as these do: named by a manifest that the deployment has signed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from pipeline.errors import StoreUnavailable
from pipeline.private_files import make_private_folder
from pipeline.storage.generations import KeptGenerations
from pipeline.storage.own_bucket import OwnBucket
from pipeline.storage.shared_work import CLEAN_EVERY_S, MANIFEST, SharedWork

GENERATION, KEPT_AT = "generation.pickle", "kept_at"

log = structlog.get_logger()


class SharedGenerations(KeptGenerations):
    """A directory of the bucket; the folder holds those that this machine made or exported lately.

    Args:
        folder, lifetime_s, max_bytes, clock: as for `KeptGenerations`; the limits hold for the bucket too.
        bucket: the directory.
        master_keys: the deployment's, the current one first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bucket: OwnBucket,
        master_keys: Sequence[bytes],
        lifetime_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(folder, lifetime_s=lifetime_s, max_bytes=max_bytes, clock=clock)
        self._bucket = bucket
        self._master_keys = master_keys
        self._cleaned_at_s = float("-inf")

    def keep(self, file_prefix: str, checkpoint: Path) -> None:
        """As `KeptGenerations.keep`."""
        super().keep(file_prefix, checkpoint)
        kept = super().find(file_prefix)
        if kept is None:
            return
        with self._staging(file_prefix) as staging:
            make_private_folder(staging)
            try:
                os.link(kept, staging / GENERATION)
            except OSError:  # cleaned meanwhile, or a file system without hard links
                return
            (staging / KEPT_AT).write_text(f"{kept.stat().st_mtime}")
            SharedWork(self._bucket, master_keys=self._master_keys).save(staging)

    def find(self, file_prefix: str) -> Path | None:
        """As `KeptGenerations.find`; fetches what another machine keeps."""
        found = super().find(file_prefix)
        if found is not None or not self.has(file_prefix):
            return found
        with self._staging(file_prefix) as staging:
            SharedWork(self._bucket, master_keys=self._master_keys).restore(staging)
            if not (staging / GENERATION).exists() or not (staging / KEPT_AT).exists():
                return None
            kept_at = float((staging / KEPT_AT).read_text())
            os.utime(staging / GENERATION, (kept_at, kept_at))
            (staging / GENERATION).replace(self._path_of(file_prefix))
        return super().find(file_prefix)

    def has(self, file_prefix: str) -> bool:
        """As `GenerationIndex.has`.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        if super().find(file_prefix) is not None:
            return True
        kept_at = self._bucket.within(file_prefix).modified_at(MANIFEST)
        return kept_at is not None and not self._is_expired(kept_at)

    def delete(self, file_prefix: str) -> None:
        """As `GenerationIndex.delete`.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        super().delete(file_prefix)
        self._bucket.within(file_prefix).remove()

    def clean(self) -> None:
        """As `KeptGenerations.clean`; looks into the bucket at most every few minutes."""
        super().clean()
        if time.monotonic() - self._cleaned_at_s < CLEAN_EVERY_S:
            return
        self._cleaned_at_s = time.monotonic()
        try:
            self._clean_bucket()
        except StoreUnavailable as error:
            log.warning("kept generations not cleaned", reason=str(error))

    def _clean_bucket(self) -> None:
        kept: dict[str, tuple[float, int]] = {}
        for found in self._bucket.objects():
            name = found.name.partition("/")[0]
            kept_at, size_bytes = kept.get(name, (0.0, 0))
            kept[name] = max(kept_at, found.modified_at), size_bytes + found.size_bytes
        occupied = 0
        for name, (kept_at, size_bytes) in sorted(kept.items(), key=lambda item: item[1], reverse=True):
            occupied += size_bytes
            if self._is_expired(kept_at) or occupied > self._max_bytes:
                self._bucket.within(name).remove()

    @contextmanager
    def _staging(self, file_prefix: str) -> Generator[Path]:
        """A folder's path on the file system of the kept generations; what is there is deleted afterwards."""
        make_private_folder(self._folder)
        parent = Path(tempfile.mkdtemp(prefix="sharing-", dir=self._folder.parent))
        try:
            yield parent / file_prefix
        finally:
            shutil.rmtree(parent, ignore_errors=True)
