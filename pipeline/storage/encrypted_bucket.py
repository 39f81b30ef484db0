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
from pipeline.storage.secret_box import SecretBox


def encrypt_bucket(bucket: Bucket, *, owner: str, secret_box: SecretBox) -> bytes:
    """What `KeyStore.save_s3` is to keep: all of the bucket's details, for this owner alone."""
    return secret_box.seal(json.dumps(asdict(bucket)).encode(), owner=owner)


def decrypt_bucket(sealed: bytes, *, owner: str, secret_box: SecretBox) -> Bucket:
    """The bucket that was sealed.

    Raises:
        DeliveryFailed: this deployment's secrets do not open it, or it is another owner's.
    """
    try:
        return Bucket(**json.loads(secret_box.open(sealed, owner=owner)))
    except (TypeError, ValueError) as error:
        raise DeliveryFailed("the saved bucket is of another version of this service; save it again") from error


class EncryptedBucket:
    """A `pipeline.storage.base.CustomerBucket` that is opened when it is used.

    So whatever is wrong with it is a failed delivery, after which files go to temporary storage, like any other.

    Args:
        sealed: what `encrypt_bucket` gave.
        http: as for `S3Storage`.
    """

    def __init__(self, sealed: bytes, *, owner: str, secret_box: SecretBox, http: httpx.Client) -> None:
        self._sealed = sealed
        self._owner = owner
        self._vault = secret_box
        self._http = http
        self._opened: S3Storage | None = None

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """As `S3Storage.store`.

        Raises:
            DeliveryFailed: it cannot be opened, or did not take the files.
        """
        return self._storage().store(files, file_prefix=file_prefix)

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        """As `S3Storage.check_public_url`."""
        return self._storage().check_public_url(artifacts)

    def _storage(self) -> S3Storage:
        if self._opened is None:
            bucket = decrypt_bucket(self._sealed, owner=self._owner, secret_box=self._vault)
            self._opened = S3Storage(bucket, http=self._http)
        return self._opened
