"""The deployment's own bucket, which its machines share as they would a folder. Knows nothing of what is in it.

It stays private: nothing in it is public, and no link leads to it. What is sent is verified as in customers' buckets.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from pipeline.errors import StoreUnavailable
from pipeline.storage.s3 import PART_BYTES, S3Storage
from pipeline.storage.s3_client import Bucket, explain, failures, status_and_code


@dataclass(frozen=True)
class StoredObject:
    """An object in the bucket.

    Attributes:
        name: its key below the directory of the bucket.
        modified_at: seconds since 1970, as the service's clock reads.
    """

    name: str
    size_bytes: int
    modified_at: float


class OwnBucket(S3Storage):
    """A directory of the bucket.

    Args:
        bucket: where; its public URL is not used.
        http: sends all requests.
    """

    def __init__(self, bucket: Bucket, *, http: httpx.Client) -> None:
        super().__init__(bucket, http=http)
        self._accepts_acl = False  # objects are private, as the bucket is

    def within(self, folder: str) -> OwnBucket:
        """A directory below this one."""
        below = OwnBucket(replace(self._bucket, directory=self._bucket.key_of(folder)), http=self._http)
        below._made = self._client
        return below

    def fetch(self, name: str, target: Path) -> None:
        """Copy an object into a file.

        Raises:
            FileNotFoundError: there is no such object.
            StoreUnavailable: the bucket does not answer.
        """
        key, begin = self._bucket.key_of(name), 0
        with _translated(self._bucket.name), target.open("wb") as file:
            size_bytes = self._client.head_object(Bucket=self._bucket.name, Key=key)["ContentLength"]
            while begin < size_bytes:
                span = f"bytes={begin}-{min(begin + PART_BYTES, size_bytes) - 1}"
                answer = self._client.get_object(Bucket=self._bucket.name, Key=key, Range=span)
                begin += file.write(answer["Body"].read())

    def modified_at(self, name: str) -> float | None:
        """When an object was written, seconds since 1970; None where there is none.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        with suppress(FileNotFoundError), _translated(self._bucket.name):
            head = self._client.head_object(Bucket=self._bucket.name, Key=self._bucket.key_of(name))
            modified: datetime = head["LastModified"]
            return modified.timestamp()
        return None

    def objects(self) -> Iterator[StoredObject]:
        """All objects in the directory and below it.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        start = self._bucket.key_of("")
        more: dict[str, Any] = {}
        while True:
            with _translated(self._bucket.name):
                page = self._client.list_objects_v2(Bucket=self._bucket.name, Prefix=start, **more)
            for found in page.get("Contents", ()):
                modified: datetime = found["LastModified"]
                yield StoredObject(found["Key"].removeprefix(start), found["Size"], modified.timestamp())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def remove(self) -> int:
        """Delete the directory with all that is in it; returns the number of objects.

        Raises:
            StoreUnavailable: the bucket does not answer.
        """
        names = [found.name for found in self.objects()]
        with _translated(self._bucket.name):
            for name in names:  # one by one: some services lack DeleteObjects, and a job has few files
                self._client.delete_object(Bucket=self._bucket.name, Key=self._bucket.key_of(name))
        return len(names)


@contextmanager
def _translated(bucket: str) -> Generator[None]:
    try:
        yield
    except failures() as error:
        if status_and_code(error)[0] == 404 and status_and_code(error)[1] != "NoSuchBucket":
            raise FileNotFoundError("there is no such object") from error
        raise StoreUnavailable(f"the deployment's bucket is unavailable ({explain(error, bucket=bucket)})") from error
