"""A customer's bucket in any S3-compatible service. Knows nothing of jobs or of which addresses are allowed.

The given HTTP client sends every request and decides which addresses may be reached, see `s3_client`.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog

from pipeline.errors import Cancelled, DeliveryFailed, ImageTo3DError, InvalidRequest
from pipeline.net.deadline import IsCancelled, deadline
from pipeline.storage.base import Artifact, OutputFile
from pipeline.storage.s3_client import TIMEOUT, Bucket, explain, failures, make_client, status_and_code

PART_BYTES = 8 << 20
"""Size of the parts of a large file; services require at least 5 MiB except for the last part."""
MULTIPART_FROM_BYTES = 16 << 20
SHA256_KEY = "sha256"
"""The metadata entry of an object that contains the digest of its content."""
PUBLIC_S = 10.0
ABORT_S = 5.0
"""How long a failed upload may still take to delete its parts."""
NO_PUBLIC_ANSWER = "The files are in your bucket, but public_url does not answer."

log = structlog.get_logger()


@dataclass(frozen=True)
class Patience:
    """How long a bucket may take.

    Attributes:
        attempts: per request.
        timeout: of each network operation of a request.
        base_s: for all requests of a transfer together, beside what its bytes take.
        min_bytes_per_s: the slowest rate of the bytes.
        most_s: for any transfer.
    """

    attempts: int
    timeout: httpx.Timeout
    base_s: float
    min_bytes_per_s: float = 256 << 10
    most_s: float = 330.0

    def limit_s(self, size_bytes: int) -> float:
        """The deadline of a transfer of so many bytes."""
        return min(self.base_s + size_bytes / self.min_bytes_per_s, self.most_s)


PROBE_PATIENCE = Patience(attempts=1, timeout=httpx.Timeout(15.0, connect=10.0), base_s=30.0)
"""Of `update_s3`, while its caller waits."""
JOB_PATIENCE = Patience(
    attempts=3, timeout=httpx.Timeout(10.0, connect=5.0), base_s=15.0, min_bytes_per_s=1 << 20, most_s=60.0
)
"""Of a job's own delivery: other jobs wait for the worker, and a bucket that is slower gets the files afterwards."""
LATE_PATIENCE = Patience(attempts=4, timeout=TIMEOUT, base_s=120.0)
"""Of an upload after the job has ended."""


class S3Storage:
    """A bucket, as a `pipeline.storage.base.CustomerBucket`.

    Args:
        bucket: the customer's.
        http: sends all requests; its transport decides which addresses may be reached.
        patience: how long it may take.
        is_cancelled: asked during a transfer, which then raises `Cancelled`.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        http: httpx.Client,
        patience: Patience = LATE_PATIENCE,
        is_cancelled: IsCancelled | None = None,
    ) -> None:
        self._bucket = bucket
        self._http = http
        self._patience = patience
        self._is_cancelled = is_cancelled
        self._accepts_acl = True
        self._made: Any = None

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """Upload the files; an existing object with the same content is not replaced.

        The smallest file is uploaded first, so that a bucket that refuses does so early; the model is uploaded last,
        so that a reader who sees it also finds its companions.

        Raises:
            DeliveryFailed: the bucket did not accept them, or not in time; the message says why.
            Cancelled: the transfer was cancelled.
        """
        stored: dict[Path, Artifact] = {}
        try:
            limit_s = self._patience.limit_s(sum(file.path.stat().st_size for file in files))
            with deadline(limit_s, is_cancelled=self._is_cancelled):
                for file in sorted(files, key=lambda file: (file.kind == "model", file.path.stat().st_size)):
                    stored[file.path] = self._store_one(file)
        except Cancelled:
            raise
        except failures() as error:  # before OSError, because some of them are OSErrors too
            raise DeliveryFailed(explain(error, bucket=self._bucket.name)) from error
        except OSError as error:
            raise DeliveryFailed(f"a file to upload cannot be read: {error.strerror}") from error
        return [stored[file.path] for file in files]

    def probe(self) -> None:
        """Put a test object, read it back through the API, and delete it.

        Raises:
            InvalidRequest: says what failed: `AccessDenied on PutObject: ...`.
            BlockedAddress: the endpoint leads to an address that this deployment does not allow.
        """
        try:
            with deadline(self._patience.base_s, is_cancelled=self._is_cancelled):
                self._probe()
        except DeliveryFailed as error:
            raise InvalidRequest(str(error)) from error

    def _probe(self) -> None:
        name = f"image-to-3d-probe-{secrets.token_hex(8)}.txt"
        key, content = self._bucket.key_of(name), secrets.token_hex(32).encode()
        try:
            self._put(key, content, content_type="text/plain", sha256=hashlib.sha256(content).hexdigest())
            try:
                read = self._client.get_object(Bucket=self._bucket.name, Key=key)["Body"].read()
            except failures():
                with deadline(ABORT_S):
                    self._try(self._client.delete_object, key)
                raise
            self._client.delete_object(Bucket=self._bucket.name, Key=key)
        except ImageTo3DError:
            raise
        except failures() as error:
            raise InvalidRequest(explain(error, bucket=self._bucket.name)) from error
        if read != content:
            raise InvalidRequest("GetObject returned other content than PutObject had stored")

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        """One sentence that says why the public URL of the first artifact does not answer; None if it does.

        `store` has verified the objects themselves; a bucket may be private on purpose.
        """
        url = artifacts[0].url
        try:
            with deadline(PUBLIC_S, is_cancelled=self._is_cancelled):
                status = self._http.head(url, timeout=PUBLIC_S, follow_redirects=False).status_code
                if status in (403, 405, 501):  # some services and gateways do not support HEAD
                    with self._http.stream("GET", url, timeout=PUBLIC_S, follow_redirects=False) as answer:
                        status = answer.status_code
        except Cancelled:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, ImageTo3DError):
            return NO_PUBLIC_ANSWER
        if 200 <= status < 300:
            return None
        return f"The files are in your bucket, but public_url answers {status}."

    @property
    def _client(self) -> Any:
        if self._made is None:
            patience = self._patience
            self._made = make_client(self._bucket, self._http, attempts=patience.attempts, timeout=patience.timeout)
        return self._made

    def _store_one(self, file: OutputFile) -> Artifact:
        """Upload one file unless it exists, and verify it."""
        key = self._bucket.key_of(file.path.name)
        digest = _digest_of(file.path)
        if not self._holds(key, digest):
            if digest.size_bytes < MULTIPART_FROM_BYTES:
                self._put(key, file.path.read_bytes(), content_type=file.content_type, sha256=digest.sha256)
            else:
                self._put_in_parts(key, file, sha256=digest.sha256)
            self._verify(key, digest)
        url = self._bucket.url_of(file.path.name)
        return Artifact.of(file, url=url, size_bytes=digest.size_bytes, sha256=digest.sha256)

    def _put(self, key: str, content: bytes, *, content_type: str, sha256: str) -> None:
        self._with_acl(
            self._client.put_object,
            Key=key,
            Body=content,
            ContentMD5=_md5_base64(content),
            ContentType=content_type,
            Metadata={SHA256_KEY: sha256},
        )

    def _put_in_parts(self, key: str, file: OutputFile, *, sha256: str) -> None:
        """Upload a large file; the parts of a failed upload are deleted, since the customer would pay for them."""
        begun = self._with_acl(
            self._client.create_multipart_upload,
            Key=key,
            ContentType=file.content_type,
            Metadata={SHA256_KEY: sha256},
        )
        upload = {"Bucket": self._bucket.name, "Key": key, "UploadId": begun.get("UploadId")}
        parts: list[dict[str, Any]] = []
        try:
            for number, content in enumerate(_parts_of(file.path), start=1):
                md5 = _md5_base64(content)
                answer = self._client.upload_part(**upload, PartNumber=number, Body=content, ContentMD5=md5)
                parts.append({"PartNumber": number, "ETag": answer.get("ETag", "")})
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with deadline(ABORT_S):  # the transfer's own may have passed
                self._try(self._client.abort_multipart_upload, key, UploadId=begun.get("UploadId"))
            raise

    def _with_acl(self, request: Callable[..., Any], **arguments: Any) -> Any:
        """Request a public object; if that is refused, try without the ACL, and keep to that if it works."""
        if self._accepts_acl:
            try:
                return request(Bucket=self._bucket.name, ACL="public-read", **arguments)
            except failures() as error:
                status, code = status_and_code(error)
                if status not in (400, 403, 501) or code == "BadDigest":
                    raise
        answer = request(Bucket=self._bucket.name, **arguments)
        self._accepts_acl = False
        return answer

    def _holds(self, key: str, digest: _Digest) -> bool:
        """Whether the object exists with this content; False also if reading it is not permitted."""
        try:
            head = self._client.head_object(Bucket=self._bucket.name, Key=key)
        except failures() as error:
            if status_and_code(error)[0] in (403, 404):
                return False
            raise
        sha256 = head.get("Metadata", {}).get(SHA256_KEY)
        is_ours = (head.get("ContentLength"), sha256) == (digest.size_bytes, digest.sha256)
        return is_ours and self._is_intact(key, head, digest)

    def _verify(self, key: str, digest: _Digest) -> None:
        """Check that the object is complete; wait for services that show it with a delay.

        Raises:
            DeliveryFailed: it does not exist, or differs from what was sent.
        """
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

        retrying = Retrying(
            retry=retry_if_exception(lambda error: status_and_code(error)[0] == 404),
            stop=stop_after_attempt(6),
            wait=wait_exponential(multiplier=0.1),
            reraise=True,
        )
        try:
            head = retrying(self._client.head_object, Bucket=self._bucket.name, Key=key)
        except failures() as error:
            if status_and_code(error)[0] == 403:
                return  # a key that may write but not read: the service acknowledged the upload with its checksum
            raise
        if (held := head.get("ContentLength")) != digest.size_bytes:
            raise DeliveryFailed(f"the bucket holds {held} bytes of {digest.size_bytes}")
        if not self._is_intact(key, head, digest):
            raise DeliveryFailed("the object in the bucket differs from the file that was sent")

    def _is_intact(self, key: str, head: Any, digest: _Digest) -> bool:
        """Whether an object of the right size has the right content: by its ETag or else by reading it."""
        if head.get("ETag", "").strip('"') == digest.etag or head.get("ServerSideEncryption", "").startswith("aws:kms"):
            return True  # with KMS encryption, the ETag is no digest; the service itself checked Content-MD5
        read = hashlib.sha256()
        for begin in range(0, digest.size_bytes, PART_BYTES):
            span = f"bytes={begin}-{min(begin + PART_BYTES, digest.size_bytes) - 1}"
            try:
                read.update(self._client.get_object(Bucket=self._bucket.name, Key=key, Range=span)["Body"].read())
            except failures() as error:
                if status_and_code(error)[0] == 403:
                    return True
                raise
        return read.hexdigest() == digest.sha256

    def _try(self, request: Callable[..., Any], key: str, **arguments: Any) -> None:
        """Clean up after a failure, as far as possible."""
        try:
            request(Bucket=self._bucket.name, Key=key, **arguments)
        except failures() as error:
            log.info("not deleted from the bucket", reason=explain(error, bucket=self._bucket.name))


@dataclass(frozen=True)
class _Digest:
    """Identifies the content of a file.

    Attributes:
        etag: the ETag of the uploaded object: the MD5 or, for parts, the MD5 of their MD5s and their number.
    """

    size_bytes: int
    sha256: str
    etag: str


def _digest_of(path: Path) -> _Digest:
    """All digests of a file, which is read once."""
    sha256 = hashlib.sha256()
    md5s: list[bytes] = []
    whole_md5 = hashlib.md5(usedforsecurity=False)
    size_bytes = 0
    for part in _parts_of(path):
        sha256.update(part)
        whole_md5.update(part)
        md5s.append(hashlib.md5(part, usedforsecurity=False).digest())
        size_bytes += len(part)
    if size_bytes < MULTIPART_FROM_BYTES:
        return _Digest(size_bytes, sha256.hexdigest(), whole_md5.hexdigest())
    of_parts = hashlib.md5(b"".join(md5s), usedforsecurity=False).hexdigest()
    return _Digest(size_bytes, sha256.hexdigest(), f"{of_parts}-{len(md5s)}")


def _parts_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as reader:
        while part := reader.read(PART_BYTES):
            yield part


def _md5_base64(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
