"""The generations of finished jobs, kept for a while so that further exports need no engine.

A generation is the checkpoint that `run_job` wrote after its second stage, under the job's file prefix. Knows nothing
of what is in it, nor of jobs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import structlog

from pipeline.private_files import make_private_file, make_private_folder
from pipeline.storage.links import SAFE_NAME

FOLDER = "generations"
"""The folder below the one of unfinished jobs."""

log = structlog.get_logger()


class GenerationIndex(Protocol):
    """Kept generations as the web process uses them."""

    def has(self, file_prefix: str) -> bool:
        """Whether a job's generation is kept."""
        ...

    def delete(self, file_prefix: str) -> None:
        """Delete a job's generation, if it is kept."""
        ...


class KeptGenerations:
    """A folder of generations, as a `GenerationIndex`. Several processes may use it at the same time.

    Args:
        folder: created when first needed; on the file system of the work folders.
        lifetime_s: how long a generation is kept; 0 keeps none.
        max_bytes: what all of them together may occupy; the oldest are deleted first.
        clock: seconds since 1970.
    """

    def __init__(
        self, folder: Path, *, lifetime_s: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._lifetime_s = lifetime_s
        self._max_bytes = max_bytes
        self._clock = clock

    def keep(self, file_prefix: str, checkpoint: Path) -> None:
        """Keep a checkpoint, whose file stays where it is. A failure is only logged: the job has its result."""
        try:
            if self._lifetime_s <= 0 or checkpoint.stat().st_size > self._max_bytes:
                return
            make_private_folder(self._folder)
            arriving = self._folder / f".arriving-{secrets.token_hex(8)}"
            try:
                os.link(checkpoint, arriving)
            except OSError:  # a file system without hard links
                make_private_file(arriving)
                shutil.copyfile(checkpoint, arriving)
            now = self._clock()
            os.utime(arriving, (now, now))
            arriving.replace(self._path_of(file_prefix))
            self.clean()
        except OSError as error:
            log.warning("generation not kept", reason=str(error))

    def find(self, file_prefix: str) -> Path | None:
        """The kept checkpoint of a job; None where it is not kept any more."""
        path = self._path_of(file_prefix)
        with suppress(FileNotFoundError):
            if not self._is_expired(path.stat().st_mtime):
                return path
        return None

    def has(self, file_prefix: str) -> bool:
        """As `GenerationIndex.has`."""
        return self.find(file_prefix) is not None

    def delete(self, file_prefix: str) -> None:
        """As `GenerationIndex.delete`."""
        self._path_of(file_prefix).unlink(missing_ok=True)

    def clean(self) -> None:
        """Delete what is too old and, oldest first, what is too much."""
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            with suppress(FileNotFoundError):  # another process deleted it
                stat = path.stat()
                entries.append((stat.st_mtime, stat.st_size, path))
        occupied = 0
        for kept_at, size_bytes, path in sorted(entries, reverse=True):
            occupied += size_bytes
            if self._is_expired(kept_at) or occupied > self._max_bytes:
                path.unlink(missing_ok=True)

    def _is_expired(self, kept_at: float) -> bool:
        return self._clock() - kept_at >= self._lifetime_s

    def _path_of(self, file_prefix: str) -> Path:
        if not SAFE_NAME.fullmatch(file_prefix):
            raise ValueError(f"{file_prefix!r} cannot name a kept generation")
        return self._folder / generation_name(file_prefix)


def generation_name(file_prefix: str) -> str:
    """The name of a kept generation's file."""
    return f"{file_prefix}.pickle"
