"""Temporary outputs in the deployment's own bucket, behind the same signed links as those in a folder.

The web process streams a file from a copy on its machine, with `Range` and `ETag`. Links that the bucket's service
signs would not do: a job's links are known before its files exist, one token opens all files of a job so that an OBJ's
references resolve, a deleted job's links end at once, and the bucket need not be reachable for callers.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from pipeline.errors import DeliveryFailed, NotFound, StoreUnavailable
from pipeline.private_files import make_private_folder
from pipeline.storage.base import Artifact, FileKind, OutputFile, StoredFile
from pipeline.storage.links import SAFE_NAME, LinkSigner
from pipeline.storage.local import EXPIRY_FILE, RUN_ALLOWANCE_S, LocalStorage
from pipeline.storage.own_bucket import OwnBucket

COPY_LIFETIME_S = 300.0
"""How long a copy is served without asking the bucket; a file that was deleted elsewhere may be served so long."""
COPIES_KEPT_S = 3 * COPY_LIFETIME_S
"""How long a copy stays on this machine after its last use; longer than any copy is served without a check."""
CLEAN_EVERY_S = 600.0
"""How often one process looks for expired files in the bucket: a list of all objects costs requests."""

log = structlog.get_logger()


class SharedOutputs(LocalStorage):
    """A directory of the bucket; the folder holds copies of what this machine wrote or served lately.

    Args:
        folder, signer, base_url, lifetime_s: as for `LocalStorage`.
        bucket: the directory of the files.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bucket: OwnBucket,
        signer: LinkSigner,
        base_url: str = "",
        lifetime_s: float = 24 * 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(folder, signer=signer, base_url=base_url, lifetime_s=lifetime_s, clock=clock)
        self._bucket = bucket
        self._checked_at_s: dict[Path, float] = {}
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._evicted_at_s = self._cleaned_at_s = float("-inf")

    def store(
        self,
        files: Sequence[OutputFile],
        *,
        file_prefix: str,
        created_at: float | None = None,
        lifetime_s: float | None = None,
    ) -> list[Artifact]:
        """As `LocalStorage.store`; the files are in the bucket when this returns."""
        artifacts = super().store(files, file_prefix=file_prefix, created_at=created_at, lifetime_s=lifetime_s)
        folder = self._folder / file_prefix
        copies = [replace(file, path=folder / file.path.name) for file in files]
        if (folder / EXPIRY_FILE).exists():
            copies.append(OutputFile(folder / EXPIRY_FILE, "extra", "text/plain"))
        try:
            self._bucket.within(file_prefix).store(copies, file_prefix=file_prefix)
        except DeliveryFailed as error:
            super().delete(file_prefix)
            raise DeliveryFailed(f"the deployment's bucket did not accept the files ({error})") from error
        now_s = time.monotonic()
        self._checked_at_s |= {copy.path: now_s for copy in copies}
        return artifacts

    def open_file(self, token: str, name: str) -> StoredFile:
        """As `LocalStorage.open_file`; the ETag is the content's digest, so it is the same on all machines.

        Raises:
            StoreUnavailable: the bucket does not answer, and there is no copy on this machine.
        """
        self._evict()
        file_prefix = self.prefix_of(token)
        self._refresh(file_prefix, name)
        with suppress(NotFound, StoreUnavailable):  # most files have no lifetime of their own
            self._refresh(file_prefix, EXPIRY_FILE)
        stored = super().open_file(token, name)
        return replace(stored, etag=f'"{self._digest_of(stored)}"')

    def stored_files(self, contents: Iterable[tuple[str, FileKind]], *, file_prefix: str) -> list[OutputFile]:
        """As `LocalStorage.stored_files`.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        contents = list(contents)
        for name, _ in contents:
            self._refresh(file_prefix, name)
        return super().stored_files(contents, file_prefix=file_prefix)

    def delete(self, file_prefix: str) -> bool:
        """As `LocalStorage.delete`; another machine may serve its copy for up to `COPY_LIFETIME_S`.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        if not SAFE_NAME.fullmatch(file_prefix):
            return False
        removed = self._bucket.within(file_prefix).remove()
        super().delete(file_prefix)
        return removed > 0

    def clean(self) -> int:
        """Delete expired files from the bucket, and old copies from this machine; returns for how many jobs."""
        self._evict()
        if time.monotonic() - self._cleaned_at_s < CLEAN_EVERY_S:
            return 0
        self._cleaned_at_s = time.monotonic()
        newest: defaultdict[str, float] = defaultdict(float)
        own_expiry: set[str] = set()
        for found in self._bucket.objects():
            file_prefix, _, name = found.name.partition("/")
            newest[file_prefix] = max(newest[file_prefix], found.modified_at)
            if name == EXPIRY_FILE:
                own_expiry.add(file_prefix)
        removed = 0
        for file_prefix, stored_at in newest.items():
            expires_at = self._expiry_in_bucket(file_prefix) if file_prefix in own_expiry else None
            if self._clock() >= (stored_at + self._lifetime_s + RUN_ALLOWANCE_S if expires_at is None else expires_at):
                removed += self.delete(file_prefix)
        return removed

    def _expiry_in_bucket(self, file_prefix: str) -> float | None:
        with suppress(NotFound):
            self._refresh(file_prefix, EXPIRY_FILE)
        return self.expiry_of(file_prefix)

    def _refresh(self, file_prefix: str, name: str) -> None:
        """Make sure that this machine has a recent copy of a file.

        Raises:
            NotFound: there is no such file in the bucket.
            StoreUnavailable: the bucket does not answer, and there is no copy.
        """
        is_safe = SAFE_NAME.fullmatch(file_prefix) and (SAFE_NAME.fullmatch(name) or name == EXPIRY_FILE)
        if not is_safe:
            raise NotFound("there is no such file")
        path = self._folder / file_prefix / name
        has_copy = path.exists()
        if time.monotonic() - self._checked_at_s.get(path, float("-inf")) >= COPY_LIFETIME_S:
            try:
                has_copy = self._check(path, self._bucket.within(file_prefix), has_copy=has_copy)
            except StoreUnavailable as error:
                if not has_copy:
                    raise
                log.warning("copy served unchecked", reason=str(error))
            else:
                self._checked_at_s[path] = time.monotonic()
        elif not has_copy and name != EXPIRY_FILE:  # deleted here since, by another process
            has_copy = self._check(path, self._bucket.within(file_prefix), has_copy=False)
        if not has_copy:
            raise NotFound("there is no such file")
        now = time.time()
        os.utime(path.parent, (now, now))  # its last use, for `_evict`

    def _check(self, path: Path, bucket: OwnBucket, *, has_copy: bool) -> bool:
        """Compare a copy with the bucket: delete it, or download it; returns whether there is one then."""
        if has_copy:
            if bucket.modified_at(path.name) is not None:
                return True
            path.unlink(missing_ok=True)
            return False
        arriving = self._folder / f".arriving-{secrets.token_hex(8)}"
        make_private_folder(self._folder)
        try:
            bucket.fetch(path.name, arriving)
            make_private_folder(path.parent)
            arriving.replace(path)
        except FileNotFoundError:
            return False
        finally:
            arriving.unlink(missing_ok=True)
        return True

    def _digest_of(self, stored: StoredFile) -> str:
        """The SHA-256 of a copy, computed once for each of its versions."""
        version = (stored.path, round(stored.modified_at * 1e6), stored.size_bytes)
        if version not in self._digests:
            with stored.path.open("rb") as reader:
                self._digests[version] = hashlib.file_digest(reader, "sha256").hexdigest()
        return self._digests[version]

    def _evict(self) -> None:
        """Delete copies that were not used lately, at most once a minute."""
        if time.monotonic() - self._evicted_at_s < 60.0 or not self._folder.is_dir():
            return
        self._evicted_at_s = time.monotonic()
        for folder in list(self._folder.iterdir()):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > COPIES_KEPT_S:
                    self._remove(folder) if folder.is_dir() else folder.unlink()
        since_s = time.monotonic() - COPY_LIFETIME_S
        self._checked_at_s = {path: at_s for path, at_s in self._checked_at_s.items() if at_s > since_s}
        self._digests = {version: digest for version, digest in self._digests.items() if version[0].exists()}
