"""A customer's bucket as it is kept at rest: sealed until the moment when files go there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import httpx

from pipeline.errors import DeliveryFailed
from pipeline.storage.base import Artifact, OutputFile
from pipeline.storage.s3 import S3Storage
from pipeline.storage.s3_client import Bucket
from pipeline.storage.vault import Vault


def seal_bucket(bucket: Bucket, *, owner: str, vault: Vault) -> bytes:
    """What `KeyStore.save_s3` is to keep: all of the bucket's details, for this owner alone."""
    return vault.seal(json.dumps(asdict(bucket)).encode(), owner=owner)


def open_bucket(sealed: bytes, *, owner: str, vault: Vault) -> Bucket:
    """The bucket that was sealed.

    Raises:
        DeliveryFailed: this deployment's secrets do not open it, or it is another owner's.
    """
    try:
        return Bucket(**json.loads(vault.open(sealed, owner=owner)))
    except (TypeError, ValueError) as error:
        raise DeliveryFailed("the saved bucket is of another version of this service; save it again") from error


class SavedBucket:
    """A `pipeline.storage.base.CustomerBucket` that is opened when it is used.

    So whatever is wrong with it is a failed delivery, after which files go to temporary storage, like any other.

    Args:
        sealed: what `seal_bucket` gave.
        http: as for `S3Storage`.
    """

    def __init__(self, sealed: bytes, *, owner: str, vault: Vault, http: httpx.Client) -> None:
        self._sealed = sealed
        self._owner = owner
        self._vault = vault
        self._http = http
        self._opened: S3Storage | None = None

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """As `S3Storage.store`.

        Raises:
            DeliveryFailed: it cannot be opened, or did not take the files.
        """
        return self._storage().store(files, file_prefix=file_prefix)

    def public_trouble(self, artifacts: Sequence[Artifact]) -> str | None:
        """As `S3Storage.public_trouble`."""
        return self._storage().public_trouble(artifacts)

    def _storage(self) -> S3Storage:
        if self._opened is None:
            bucket = open_bucket(self._sealed, owner=self._owner, vault=self._vault)
            self._opened = S3Storage(bucket, http=self._http)
        return self._opened
