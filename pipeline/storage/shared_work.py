"""The checkpoints of unfinished jobs in the deployment's own bucket, so that any machine can resume a job.

Checkpoints are pickles, which run code when they are read. So a manifest names their digests and is signed with a key
of the deployment: what somebody else put into the bucket is never read. Knows nothing of what a checkpoint holds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from pipeline.errors import ImageTo3DError
from pipeline.private_files import make_private_folder
from pipeline.secrets import derive_keys
from pipeline.storage.base import OutputFile
from pipeline.storage.own_bucket import OwnBucket

MANIFEST = "manifest.json"
CLEAN_EVERY_S = 600.0
"""How often one process lists all checkpoints in the bucket."""

log = structlog.get_logger()


class SharedWork:
    """Work folders in a directory of the bucket.

    Every failure is only logged: without its checkpoints, a job runs its stages again.

    Args:
        bucket: the directory.
        master_keys: the deployment's, the current one first.
    """

    def __init__(self, bucket: OwnBucket, *, master_keys: Sequence[bytes]) -> None:
        self._bucket = bucket
        self._keys = derive_keys(master_keys, purpose="checkpoints")
        self._saved: dict[Path, dict[str, str]] = {}
        self._cleaned_at_s = float("-inf")

    def restore(self, folder: Path) -> None:
        """Fetch the checkpoints that an earlier attempt left, unless this machine has the folder."""
        if folder.is_dir():
            return
        arriving = folder.with_name(f".arriving-{secrets.token_hex(8)}")
        make_private_folder(arriving)
        try:
            bucket = self._bucket.within(folder.name)
            for name, digest in self._read_manifest(bucket, arriving, name=folder.name).items():
                self._fetch(bucket, name, digest, arriving)
            (arriving / MANIFEST).unlink(missing_ok=True)
            arriving.replace(folder)
        except FileNotFoundError:
            pass  # a first attempt
        except (ImageTo3DError, OSError) as error:
            log.warning("checkpoints not fetched", reason=str(error))
        finally:
            shutil.rmtree(arriving, ignore_errors=True)

    def save(self, folder: Path) -> None:
        """Store what a stage left in the folder."""
        saved = self._saved.setdefault(folder, {})
        found = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".unfinished"
        }
        digests = {name: _sha256(path) for name, path in found.items()}
        bucket = self._bucket.within(folder.name)
        try:
            for name, path in found.items():
                if saved.get(name) != digests[name]:
                    _store(bucket, name, path)
            signed = {"files": digests, "mac": self._mac(folder.name, digests, self._keys[0])}
            with tempfile.TemporaryDirectory() as own:
                manifest = Path(own) / MANIFEST
                manifest.write_text(json.dumps(signed))
                _store(bucket, MANIFEST, manifest)
            self._saved[folder] = digests
        except (ImageTo3DError, OSError) as error:
            log.warning("checkpoints not stored", reason=str(error))

    def forget(self, folder: Path) -> None:
        """Delete a folder's checkpoints: its job has ended."""
        self._saved.pop(folder, None)
        try:
            self._bucket.within(folder.name).remove()
        except ImageTo3DError as error:
            log.warning("checkpoints not deleted", reason=str(error))

    def clean(self, is_stale: Callable[[str, float], bool]) -> None:
        """Delete the checkpoints of jobs that ended while nobody could delete them; looks at most every few minutes.

        Args:
            is_stale: asked with a folder's name and the time of its last change, seconds since 1970.
        """
        if time.monotonic() - self._cleaned_at_s < CLEAN_EVERY_S:
            return
        self._cleaned_at_s = time.monotonic()
        changed: dict[str, float] = {}
        for found in self._bucket.objects():
            name = found.name.partition("/")[0]
            changed[name] = max(changed.get(name, 0.0), found.modified_at)
        for name, changed_at in changed.items():
            if is_stale(name, changed_at):
                self._bucket.within(name).remove()

    def _read_manifest(self, bucket: OwnBucket, folder: Path, *, name: str) -> dict[str, str]:
        """Names and digests of the checkpoints of a folder; none where the manifest is not signed here."""
        bucket.fetch(MANIFEST, folder / MANIFEST)
        with suppress(ValueError, KeyError, TypeError):
            read = json.loads((folder / MANIFEST).read_bytes())
            digests, mac = read["files"], read["mac"]
            if any(hmac.compare_digest(mac, self._mac(name, digests, key)) for key in self._keys):
                return digests
        log.warning("checkpoints ignored: their manifest is not signed by this deployment")
        return {}

    def _fetch(self, bucket: OwnBucket, name: str, digest: str, folder: Path) -> None:
        path = folder / name
        make_private_folder(path.parent)
        parent, _, last = name.rpartition("/")
        (bucket.within(parent) if parent else bucket).fetch(last, path)
        if _sha256(path) != digest:  # a later save was interrupted
            path.unlink()

    @staticmethod
    def _mac(folder_name: str, digests: dict[str, str], key: bytes) -> str:
        signed = json.dumps([folder_name, digests], sort_keys=True).encode()
        return hmac.digest(key, signed, "sha256").hex()


def _store(bucket: OwnBucket, name: str, path: Path) -> None:
    parent = name.rpartition("/")[0]
    target = bucket.within(parent) if parent else bucket
    target.store([OutputFile(path, "extra", "application/octet-stream")], file_prefix="")


def _sha256(path: Path) -> str:
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()
