"""A customer's bucket, which stays encrypted until files are uploaded to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import httpx

from pipeline.errors import DeliveryFailed
from pipeline.net.deadline import IsCancelled
from pipeline.storage.base import Artifact, OutputFile
from pipeline.storage.s3 import LATE_PATIENCE, Patience, S3Storage
from pipeline.storage.s3_client import Bucket
from pipeline.storage.secret_box import SecretBox


def encrypt_bucket(bucket: Bucket, *, owner: str, secret_box: SecretBox) -> bytes:
    """All details of the bucket, encrypted for this owner, as `KeyStore.save_s3` keeps them."""
    return secret_box.encrypt(json.dumps(asdict(bucket)).encode(), owner=owner)


def decrypt_bucket(encrypted: bytes, *, owner: str, secret_box: SecretBox) -> Bucket:
    """The bucket that `encrypt_bucket` encrypted.

    Raises:
        DeliveryFailed: no master key of this deployment decrypts it, or it belongs to another owner.
    """
    try:
        return Bucket(**json.loads(secret_box.decrypt(encrypted, owner=owner)))
    except (TypeError, ValueError) as error:
        raise DeliveryFailed("another version of this service saved the bucket; save it again") from error


class EncryptedBucket:
    """A `pipeline.storage.base.CustomerBucket` that is decrypted when it is first used.

    So any error in it is a failed delivery, after which the files go to temporary storage, as for any other bucket.

    Args:
        encrypted: what `encrypt_bucket` returned; other details, or the same saved again, are other bytes.
        http, patience, is_cancelled: as for `S3Storage`.
    """

    def __init__(
        self,
        encrypted: bytes,
        *,
        owner: str,
        secret_box: SecretBox,
        http: httpx.Client,
        patience: Patience = LATE_PATIENCE,
        is_cancelled: IsCancelled | None = None,
    ) -> None:
        self.encrypted = encrypted
        self._patience = patience
        self._is_cancelled = is_cancelled
        self._owner = owner
        self._secret_box = secret_box
        self._http = http
        self._storage: S3Storage | None = None

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """As `S3Storage.store`.

        Raises:
            DeliveryFailed: the bucket cannot be decrypted, or did not accept the files.
        """
        return self._decrypted().store(files, file_prefix=file_prefix)

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        """As `S3Storage.check_public_url`."""
        return self._decrypted().check_public_url(artifacts)

    def _decrypted(self) -> S3Storage:
        if self._storage is None:
            bucket = decrypt_bucket(self.encrypted, owner=self._owner, secret_box=self._secret_box)
            self._storage = S3Storage(bucket, http=self._http, patience=self._patience, is_cancelled=self._is_cancelled)
        return self._storage
